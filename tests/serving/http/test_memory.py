"""Freed memory returns to the system while the service runs."""

import ctypes
import gc
import platform
import socket
import time
from pathlib import Path

import pytest

from serving import app, memory
from serving.http.guarded import GuardedConnection
from tests.waiting import wait_for


def test_the_service_returns_free_pages_now_and_then(start, monkeypatch):
    trims = []
    monkeypatch.setattr(app, "TRIM_SECONDS", 0)
    monkeypatch.setattr(app, "return_free_pages", lambda: trims.append(1))
    start()
    wait_for(lambda: len(trims) > 1, 20)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_pages_between_blocks_in_use_go_back():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    # Below the size from which a block has its own mapping.
    size, count = 64 * 1024, 1600
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for number, block in enumerate(blocks):
        if number % 16:
            libc.free(block)
    held = resident_mib()
    assert memory.return_free_pages()
    assert held - resident_mib() > 0.5 * size * count / 2**20
    for block in blocks[::16]:
        libc.free(block)


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


HEAD = b"GET /models HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /models/steady/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
SENT = {
    "nothing": b"",
    "half a head": HEAD,
    "a request": HEAD + b"\r\n",
    "a head without its body": POST,
    "two requests": (HEAD + b"\r\n") * 2,
    "no request": b"\x00\x01\r\n\r\n",
    "an unknown path": b"GET /nothing HTTP/1.1\r\nHost: localhost\r\n\r\n",
}


@pytest.mark.parametrize("what", [*SENT, "a head without its body for seconds"])
def test_a_closed_connection_is_freed_without_the_garbage_collector(start, what):
    """A closed connection is freed without the garbage collector.

    The collector looks only once in hours at objects that survived two collections. Until then, a
    reference cycle of each connection would be a leak.
    """
    service = start()
    gc.collect()
    gc.disable()
    try:
        if what in SENT:
            for _ in range(40):
                with socket.create_connection(("127.0.0.1", service.port)) as client:
                    client.sendall(SENT[what])
                    if what not in ("nothing", "half a head", "a head without its body"):
                        client.recv(65536)
        else:
            clients = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(40)]
            for client in clients:
                client.sendall(POST)
            time.sleep(4)  # the fast path passes them on
            for client in clients:
                client.close()
        wait_for(lambda: len(service.gateway.connections) == 0, 20)
        wait_for(lambda: connections_alive() <= 2, 10, connections_alive)
    finally:
        gc.enable()


def connections_alive() -> int:
    return sum(isinstance(one, GuardedConnection) for one in gc.get_objects())
