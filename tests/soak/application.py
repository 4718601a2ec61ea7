"""The application of the long tests: well-behaved paths and faulty ones. Runs in a process of its own."""

import asyncio
import multiprocessing
import resource
import socket
import struct

import websocket

CHUNK = b"x" * 65536
# The routes in front of it.
ROUTES = """
[[route]]
path = "/ws/*"
upstream = "app"
roles = ["user"]
[[route]]
path = "/app/*"
upstream = "app"
roles = ["user"]
[[route]]
path = "/public/*"
upstream = "app"
access = "public"
"""


def start():
    """The process, and its port."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_run, args=(theirs,), daemon=True)
    process.start()
    return process, ours.recv()


def _run(pipe):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


async def serve(reader, writer):
    try:
        while await exchange(reader, writer):
            pass
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
        pass
    finally:
        writer.close()


async def exchange(reader, writer):
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    path = head.split(b" ", 2)[1].split(b"/")[-1]
    if b"\r\nupgrade: websocket" in head:
        writer.write(websocket.ACCEPT)
        await websocket.echo(reader, writer)
        return False
    if path == b"early":
        writer.write(b"HTTP/1.1 413 Content Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        return False
    if path == b"unread":
        reader._transport.pause_reading()  # noqa: SLF001
        await asyncio.sleep(300)
    await read_body(reader, head)
    if path == b"events":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        while True:
            writer.write(b"data: event\n\n")
            await writer.drain()
            await asyncio.sleep(0.2)
    if path == b"large":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (256 * len(CHUNK)))
        for _ in range(256):
            writer.write(CHUNK)
            await writer.drain()
    elif path == b"reset":
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        return False
    elif path == b"broken":
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nnot so many")
        await writer.drain()
        return False
    elif path == b"garbage":
        writer.write(b"\x00\xff\x00 this is not HTTP\r\n\r\n")
        await writer.drain()
        return False
    elif path == b"hang":
        await asyncio.sleep(10)
        return False
    else:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
    await writer.drain()
    return b"\r\nconnection: close" not in head


async def read_body(reader, head):
    if b"\r\ntransfer-encoding: chunked" in head:
        while size := int((await reader.readline()).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        await reader.readline()
        return
    at = head.find(b"\r\ncontent-length: ")
    left = int(head[at + 18 : head.index(b"\r\n", at + 2)]) if at >= 0 else 0
    while left:
        left -= len(await reader.readexactly(min(left, len(CHUNK))))
