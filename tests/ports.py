"""Find free ports for the servers of tests."""

import socket


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port of ``host`` that is free now. An empty host means all addresses."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
