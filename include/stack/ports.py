"""Check whether the stack's ports are free, and which process uses them."""

import socket

import psutil

from include.settings import Settings
from include.stack.services import Service


class PortTakenError(Exception):
    """Raised when another process listens on a port of a service.

    The message names the port, the process and the setting to change.
    """


def require_free(settings: Settings, wanted: list[Service]) -> None:
    """Check before the start that each service can use its port.

    Raises:
        PortTakenError: Names all ports that are in use.
    """
    ports = [(service.name, service.port, service.port_setting) for service in wanted if service.port]
    trouble = [
        f"{name} wants port {port} of {settings.host}, which {_holder(port)}. Stop that, or choose another port:"
        f" {setting}={port + 1}"
        for name, port, setting in ports
        if not _is_free(settings.host, port)
    ]
    if trouble:
        raise PortTakenError("\n".join(trouble))


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        # The servers set it too: a lingering connection of an earlier process does not block the
        # port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    """Describe the process that listens on a port, as far as this user may see it."""
    try:
        pids = [
            c.pid
            for c in psutil.net_connections("tcp")
            if c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN and c.pid
        ]
        if pids:
            process = psutil.Process(pids[0])
            return f"process {process.pid} ({' '.join(process.cmdline())[:120]}) has"
    except psutil.Error:
        pass
    return "another process has (whose, this user may not see)"
