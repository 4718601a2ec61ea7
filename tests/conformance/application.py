"""An application behind the gateway, for one run: it answers what the path asks for, and shows what it received."""

import asyncio
import base64
import hashlib
import json
import threading

CHUNK = b"x" * 65536


class Application:
    """HTTP/1.1 on a free port, in a thread of its own."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        started = threading.Event()
        threading.Thread(target=self._run, args=(started,), daemon=True).start()
        started.wait()
        self.url = f"http://127.0.0.1:{self.port}"

    def _run(self, started):
        asyncio.set_event_loop(self.loop)

        async def start():
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=4096, limit=1 << 20)
            self.port = server.sockets[0].getsockname()[1]
            started.set()

        self.loop.run_until_complete(start())
        self.loop.run_forever()

    async def serve(self, reader, writer):
        try:
            while await self.exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def exchange(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        fields = [line.split(": ", 1) for line in lines]
        named = {name.lower(): value for name, value in fields}
        if named.get("upgrade", "").lower() == "websocket":
            return await echo(reader, writer, named["sec-websocket-key"])
        if named.get("expect") == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body, trailers = await read_body(reader, named)
        path = target.split("?")[0].removeprefix("/public").removeprefix("/app")
        shown = {"method": method, "target": target, "fields": fields, "received": body, "trailers": trailers}
        await self.respond(writer, path, method, json.dumps(shown).encode(), named)
        await writer.drain()
        return named.get("connection", "").lower() != "close"

    async def respond(self, writer, path, method, shown, named):
        if path == "/large":
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (160 * len(CHUNK)))
            for _ in range(160 if method != "HEAD" else 0):
                writer.write(CHUNK)
                await writer.drain()
        elif path in ("/chunked", "/events"):
            kind = b"text/event-stream" if path == "/events" else b"text/plain"
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ntrailer: x-end\r\ntransfer-encoding: chunked\r\n\r\n" % kind)
            for number in range(5):
                part = b"data: %d\n\n" % number
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
                await asyncio.sleep(0.05)
            writer.write(b"0\r\nx-end: reached\r\n\r\n")
        elif path == "/missing":
            writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        elif path == "/page":
            page = b"<!doctype html><title>page</title><p>page</p>"
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: %d\r\n\r\n%s" % (len(page), page))
        else:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(shown)
            writer.write(head if method == "HEAD" else head + shown)


async def echo(reader, writer, key):
    """A WebSocket that sends each short message back. Autobahn's suite has a server of its own."""
    accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
    writer.write(f"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n".encode())
    opcode = 0
    while opcode != 8:
        first, second = await reader.readexactly(2)
        mask = await reader.readexactly(4)
        payload = await reader.readexactly(second & 0x7F)
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        writer.write(bytes([first, len(payload)]) + payload)
        await writer.drain()
        opcode = first & 0x0F
    return False


async def read_body(reader, named):
    """The length of a body, which is read to its end, and its trailers."""
    if named.get("transfer-encoding") == "chunked":
        total, trailers = 0, []
        while size := int((await reader.readline()).split(b";")[0], 16):
            await reader.readexactly(size + 2)
            total += size
        while (line := (await reader.readline()).strip()):
            trailers.append(line.decode())
        return total, trailers
    left = length = int(named.get("content-length", 0))
    while left:
        left -= len(await reader.readexactly(min(left, len(CHUNK))))
    return length, []
