"""Whether the stack's ports are free, and who has them if not."""

import socket

import psutil

from include.settings import Settings
from include.stack.services import Service


class PortTaken(Exception):
    """Somebody else listens where a service of ours should; the message names port, holder and the setting to change."""


def require_free(settings: Settings, wanted: list[Service]) -> None:
    """Makes sure, before anything is started, that each service can have its port.

    Raises:
        PortTaken: for all the ports that cannot be had, at once.
    """
    ports = [(service.name, service.port, service.port_setting) for service in wanted if service.port]
    trouble = [
        f"{name} wants port {port} of {settings.host}, which {_holder(port)}. Stop that, or choose another port: {setting}={port + 1}"
        for name, port, setting in ports
        if not _is_free(settings.host, port)
    ]
    if trouble:
        raise PortTaken("\n".join(trouble))


def _is_free(host: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do: a connection of before that lingers is no obstacle
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _holder(port: int) -> str:
    """Who listens there, as far as this user may know."""
    try:
        pids = [c.pid for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.status == psutil.CONN_LISTEN and c.pid]
        if pids:
            process = psutil.Process(pids[0])
            return f"process {process.pid} ({' '.join(process.cmdline())[:120]}) has"
    except psutil.Error:
        pass
    return "another process has (whose, this user may not see)"
