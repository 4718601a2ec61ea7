"""Peers that do not read: what each connection costs while no byte moves."""

import contextlib
import socket
import struct
import tempfile
import time

import application
from process import Process, configuration

ROUTES = '[[route]]\npath = "/*"\nupstream = "app"\naccess = "public"\n[upstream.app]\nurl = "http://127.0.0.1:{port}"\n'

CONNECTIONS = 500

# RFC 9113, appendix of RFC 7541: GET, http, and a literal path and authority.
HEADERS = b"\x82\x86\x04\x06/large\x01\x04soak"


def http2(streams, window):
    """The bytes of a client of HTTP/2 that asks on so many streams and grants each this window."""
    settings = struct.pack(">HI", 4, window)
    sent = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", frame(4, 0, 0, settings), frame(8, 0, 0, struct.pack(">I", (1 << 31) - 65536))]
    sent += [frame(1, 5, 2 * number + 1, HEADERS) for number in range(streams)]
    return b"".join(sent)


def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


KINDS = {
    "HTTP/1.1 responses": b"GET /large HTTP/1.1\r\nhost: soak\r\n\r\n",
    "HTTP/1.1 uploads": b"POST /unread HTTP/1.1\r\nhost: soak\r\ncontent-length: 1000000000\r\n\r\n",
    "HTTP/2, one response, no window": http2(1, 0),
    "HTTP/2, one response, a window of 1 MiB": http2(1, 1 << 20),
    "HTTP/2, 100 responses, no window": http2(100, 0),
    "HTTP/2, 100 responses, windows of 1 MiB": http2(100, 1 << 20),
}


def run(_minutes):
    backend, port = application.start()
    passed = True
    try:
        for name, sent in KINDS.items():
            with tempfile.TemporaryDirectory() as folder:
                gateway = Process(configuration(folder, routes=ROUTES.format(port=port)))
                responses = 100 if "100" in name else 1
                each = measure(gateway, sent, 20 if responses > 1 else CONNECTIONS)
                gateway.signal("KILL")
                print(f"unread: {name}: {each:.0f} KiB for each connection", flush=True)
                passed &= each <= 128 * responses
    finally:
        backend.kill()
    return passed


def measure(gateway, sent, count):
    with socket.create_connection(("127.0.0.1", gateway.port)) as warm:
        warm.sendall(b"GET /warm HTTP/1.1\r\nhost: soak\r\nconnection: close\r\n\r\n")
        while warm.recv(4096):
            pass
    before, opened = gateway.memory(), []
    for _ in range(count):
        one = socket.create_connection(("127.0.0.1", gateway.port))
        one.sendall(sent)
        one.setblocking(False)
        opened.append(one)
    # Until neither the gateway nor the sockets take any more.
    until, moved, chunk = time.monotonic() + 60, True, bytes(65536)
    while moved and time.monotonic() < until:
        last, moved = round(gateway.memory(), 1), False
        if sent.startswith(b"POST"):
            for one in opened:
                with contextlib.suppress(BlockingIOError):
                    while one.send(chunk):
                        moved = True
        time.sleep(2)
        moved |= round(gateway.memory(), 1) != last
    each = (gateway.memory() - before) * 1024 / count
    for one in opened:
        one.close()
    return each
