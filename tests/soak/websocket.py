"""WebSockets for long tests: just enough of RFC 6455 for short messages."""

import asyncio
import struct

HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nhost: soak\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nauthorization: Bearer {token}\r\n\r\n"
)
ACCEPT = (
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


def frame(payload, opcode=1):
    """A masked frame of a client. The mask is zero, which is a mask like any other."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


async def read(reader):
    """Opcode and payload of the next frame of a server."""
    first, second = await reader.readexactly(2)
    length = second & 0x7F
    if length == 126:
        length = struct.unpack(">H", await reader.readexactly(2))[0]
    return first & 0x0F, await reader.readexactly(length)


async def connect(port, token, path="/ws/x", local=None):
    """An open WebSocket: its reader and writer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=local)
    writer.write(HANDSHAKE.format(path=path, token=token).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    if b" 101 " not in head.split(b"\r\n")[0]:
        writer.close()
        raise ConnectionError(head.split(b"\r\n")[0].decode())
    return reader, writer


async def echo(reader, writer):
    """The server's side after its handshake: sends messages back, and a close frame."""
    while True:
        first, second = await reader.readexactly(2)
        mask = await reader.readexactly(4)
        payload = await reader.readexactly(second & 0x7F)
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        writer.write(bytes([first, len(payload)]) + payload)
        await writer.drain()
        if first & 0x0F == 8:
            return
