"""Every protocol at once, with faults on both sides."""

import asyncio
import contextlib
import itertools
import pathlib
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

import application
import websocket
from process import ROOT, Process, configuration, token

UPSTREAMS = """
[upstream.app]
url = "http://127.0.0.1:{port}"
response_timeout = "8s"
[upstream.calls]
url = "http://127.0.0.1:{calls}"
http2 = true
[upstream.away]
url = "http://127.0.0.1:1"
"""
ROUTES = application.ROUTES + """
[[route]]
path = "/away/*"
upstream = "away"
access = "public"
[[route]]
path = "/shop.Inventory/*"
upstream = "calls"
roles = ["user"]
"""
# Connections from here are relayed ones, with a PROXY header.
PROXY = "127.0.0.9"
# The cache of tokens is small, so that it is full before memory is compared.
SERVER = f'trusted_proxies = ["{PROXY}/32"]\nproxy_protocol = true\nworkers = 2\n[server.limits]\nheader_timeout = "2s"\nbody_idle_timeout = "2s"\nidle_timeout = "5s"\n[token_cache]\nmax_entries = 200'


class Load:
    """The clients, and what they have counted."""

    def __init__(self, gateway, until):
        self.gateway, self.until, self.counts = gateway, until, {}

    def count(self, what):
        self.counts[what] = self.counts.get(what, 0) + 1

    async def repeat(self, name, act, pause):
        """Acts until the end. Failures that are no fault of the gateway end one round."""
        while time.monotonic() < self.until:
            try:
                await asyncio.wait_for(act(), 30)
                self.count(name)
            except (OSError, asyncio.IncompleteReadError):
                self.count(f"{name}, broken off")
            except AssertionError as wrong:
                self.count(f"{name}, FAILED {wrong}")
            except asyncio.TimeoutError:
                self.count(f"{name}, TOO LATE")
            await asyncio.sleep(pause)

    async def open(self, local=None):
        return await asyncio.open_connection("127.0.0.1", self.gateway.port, local_addr=local and (local, 0))


async def response(reader):
    """The status of a response, which is read to its end."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    if b"content-length: " in head:
        left = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        while left:
            left -= len(await reader.readexactly(min(left, 65536)))
    return int(head.split(b" ")[1])


async def is_200(reader):
    status = await response(reader)
    assert status == 200, status


def clients(load):
    """Name → what a client does once, and the pause after it."""

    async def kept():
        reader, writer = await load.open()
        own = token(f"u{random.randrange(100)}")
        for _ in range(50):
            writer.write(f"GET /app/x HTTP/1.1\r\nhost: soak\r\nauthorization: Bearer {own}\r\n\r\n".encode())
            await is_200(reader)
        writer.close()

    async def relayed():
        reader, writer = await load.open(PROXY)
        writer.write(b"PROXY TCP4 192.0.2.%d 127.0.0.1 1000 80\r\nGET /public/x HTTP/1.1\r\nhost: soak\r\n\r\n" % random.randrange(1, 255))
        await is_200(reader)
        writer.close()

    async def upload():
        reader, writer = await load.open()
        writer.write(b"POST /public/x HTTP/1.1\r\nhost: soak\r\ncontent-length: 300000\r\n\r\n" + bytes(300_000))
        await is_200(reader)
        writer.close()

    async def socket_until_revoked():
        sid = f"s{random.random()}"
        reader, writer = await websocket.connect(load.gateway.port, token("ws", sid=sid))
        for _ in range(20):
            writer.write(websocket.frame(b"hello"))
            assert await websocket.read(reader) == (1, b"hello")
            await asyncio.sleep(0.1)
        await asyncio.to_thread(load.gateway.ask, "/revoke", "POST", {"sid": sid})
        assert (await asyncio.wait_for(websocket.read(reader), 3))[0] == 8
        writer.close()

    async def socket_that_vanishes():
        reader, writer = await websocket.connect(load.gateway.port, token("ws"))
        writer.write(websocket.frame(b"hello"))
        await websocket.read(reader)
        reset(writer)

    async def events():
        reader, writer = await load.open()
        writer.write(b"GET /public/events HTTP/1.1\r\nhost: soak\r\n\r\n")
        for _ in range(10):
            await reader.readuntil(b"data: event")
        writer.close()

    return {
        "kept connections, 50 requests": (kept, 0.05), "PROXY": (relayed, 0.05), "uploads": (upload, 0.2),
        "WebSockets until revoked": (socket_until_revoked, 0.1), "WebSockets that vanish": (socket_that_vanishes, 0.1),
        "event streams": (events, 0.1),
    }


def reset(writer):
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def faults(load):
    """Clients that do what none should, and what the application does wrong."""

    def sends(text, wait=0.2, then=None):
        async def act():
            reader, writer = await load.open()
            writer.write(text)
            await asyncio.sleep(wait)
            (then or (lambda writer: writer.close()))(writer)

        return act

    async def unread():
        reader, writer = await load.open()
        writer.write(b"GET /public/large HTTP/1.1\r\nhost: soak\r\n\r\n")
        reader._transport.pause_reading()  # noqa: SLF001
        await asyncio.sleep(1)
        reset(writer)

    def asks(path, statuses):
        async def act():
            reader, writer = await load.open()
            writer.write(f"GET {path} HTTP/1.1\r\nhost: soak\r\n\r\n".encode())
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                status = await response(reader)
                assert status in statuses, status
            writer.close()

        return act

    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    return {
        "half a head": (sends(b"GET /public/x HTTP/1.1\r\nhost: so"), 0.2),
        "a head that never ends": (sends(b"GET /public/x HTTP/1.1\r\nhost: so", 4), 0.2),
        "half a body, then a reset": (sends(b"POST /public/x HTTP/1.1\r\nhost: soak\r\ncontent-length: 100\r\n\r\nhalf", then=reset), 0.2),
        "bytes that are not HTTP": (sends(bytes(range(256))), 0.2),
        "HTTP/2 that is none": (sends(preface + b"\xff" * 100), 0.2),
        "HTTP/2 that says nothing": (sends(preface, 1, reset), 0.2),
        "a response that is not read": (unread, 0.2),
        "a request that is given up": (sends(b"GET /public/hang HTTP/1.1\r\nhost: soak\r\n\r\n"), 0.3),
        "an upload answered early": (sends(b"POST /public/early HTTP/1.1\r\nhost: soak\r\ncontent-length: 900000\r\n\r\n" + bytes(300_000)), 0.3),
        "an application that resets": (asks("/public/reset", [502]), 0.2),
        "one that breaks off": (asks("/public/broken", [200]), 0.2),
        "one that does not speak HTTP": (asks("/public/garbage", [502]), 0.2),
        "one that hangs": (asks("/public/hang", [504]), 0.2),
        "one that is away": (asks("/away/x", [502]), 0.2),
    }


async def h2load(load):
    own = token("h2")
    for path, options in itertools.cycle([("/app/x", []), ("/app/large", ["-w14", "-W16"])]):
        if time.monotonic() > load.until:
            return
        command = ["h2load", "-n", "2000" if path == "/app/x" else "40", "-c4", "-m10", *options, "-H", f"authorization: Bearer {own}", f"http://127.0.0.1:{load.gateway.port}{path}"]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        printed = (await process.communicate())[0].decode()
        load.count("rounds of h2load" if " 0 failed, 0 errored, 0 timeout" in printed else "rounds of h2load, FAILED")
        await asyncio.sleep(1)


async def calls(load, peer):
    """gRPC calls, with a Python that has grpcio."""
    import json

    own = {"authorization": f"Bearer {token('grpc')}"}
    for kind, messages in itertools.cycle([("Unary", ["x"]), ("Down", ["50"]), ("Up", ["a", "b"]), ("Both", ["a", "b", "c"])]):
        if time.monotonic() > load.until:
            return
        question = {"call": kind, "address": f"127.0.0.1:{load.gateway.port}", "messages": messages, "metadata": own}
        peer.stdin.write((json.dumps(question) + "\n").encode())
        answer = json.loads(await peer.stdout.readline())
        load.count("gRPC calls" if answer["code"] == 0 else f"gRPC calls, CODE {answer['code']}")
        await asyncio.sleep(0.05)


async def reloads(load, file):
    text = file.read_text()
    for number in itertools.count():
        if time.monotonic() > load.until:
            return
        extra = f'[[route]]\npath = "/other-{number}"\nupstream = "app"\naccess = "public"\n' if number % 2 else ""
        new = file.with_suffix(".new")
        new.write_text(text + extra)
        new.replace(file)
        load.gateway.signal("HUP")
        load.count("reloads")
        await asyncio.sleep(5)


async def watch(load, samples):
    while time.monotonic() < load.until:
        await asyncio.sleep(10)
        samples.append((load.gateway.memory(), load.gateway.descriptors()))
        await asyncio.to_thread(load.gateway.ask, "/metrics")


def python_with_grpc():
    """A Python that has grpcio: that of scripts/conformance or of scripts/test."""
    for folder in ("target/conformance/venv", "tests/peers/venv"):
        if (ROOT / folder / "bin/python").exists():
            return ROOT / folder / "bin/python"
    sys.exit("error: grpcio is missing; scripts/test and scripts/conformance install it")


def run(minutes):
    if not shutil.which("h2load"):
        sys.exit("error: h2load is missing (apt-get install nghttp2-client)")
    backend, port = application.start()
    with tempfile.TemporaryDirectory() as folder:
        try:
            return asyncio.run(soak(minutes, port, pathlib.Path(folder)))
        finally:
            backend.kill()


async def peer():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "limit": 1 << 24}
    return await asyncio.create_subprocess_exec(python_with_grpc(), ROOT / "tests/peers/calls.py", **pipes)


async def soak(minutes, port, folder):
    server, caller = await peer(), await peer()
    server.stdin.write(b'{"serve": true}\n')
    calls_port = int((await server.stdout.readline()).split(b":")[1].strip(b" }\n"))
    file = configuration(folder, server=SERVER, upstreams=UPSTREAMS.format(port=port, calls=calls_port), routes=ROUTES)
    gateway = await asyncio.to_thread(Process, file)
    try:
        # The first rounds fill caches and pools; what is compared comes after them.
        await round_of(gateway, file, caller, 1, [])
        first = await quiet(gateway)
        samples = []
        load = await round_of(gateway, file, caller, minutes - 1, samples)
        last = await quiet(gateway)
        code = await asyncio.to_thread(gateway.stop)
    finally:
        gateway.process.kill()
        for one in (server, caller):
            one.kill()
            await one.wait()
    return report(load, first, last, samples, code, minutes)


async def round_of(gateway, file, caller, minutes, samples):
    load = Load(gateway, time.monotonic() + minutes * 60)
    acts = {**clients(load), **faults(load)}
    tasks = [load.repeat(name, act, pause) for name, (act, pause) in acts.items()]
    await asyncio.gather(*tasks, h2load(load), calls(load, caller), reloads(load, file), watch(load, samples))
    return load


async def quiet(gateway):
    """Memory and descriptors once no client is left and idle connections are closed."""
    until = time.monotonic() + 60
    names = ["portcullis_connections", "portcullis_tunnels", "portcullis_streams"]
    while time.monotonic() < until:
        left = {name: gateway.metric(name) for name in names}
        if not any(left.values()):
            break
        await asyncio.sleep(1)
    # Unused connections to applications are closed after keep_idle.
    await asyncio.sleep(10)
    return gateway.memory(), gateway.descriptors(), left, gateway.metric("portcullis_tasks")


def report(load, first, last, samples, code, minutes):
    third = max(len(samples) // 3, 1)
    memory = [statistics.median(sample[0] for sample in part) for part in (samples[:third], samples[-third:])]
    open_files = [statistics.median(sample[1] for sample in part) for part in (samples[:third], samples[-third:])]
    print(f"mixed: {minutes:g} minutes; {dict(sorted(load.counts.items()))}")
    print(
        f"mixed: under load, median of the first and of the last third: {memory[0]:.1f} → {memory[1]:.1f} MiB, "
        f"{open_files[0]:.0f} → {open_files[1]:.0f} descriptors; at rest after the first minute and at the end: "
        f"{first[0]:.1f} → {last[0]:.1f} MiB, {first[1]} → {last[1]} descriptors, {first[3]:g} → {last[3]:g} tasks, left: {last[2]}; the gateway ended with {code}"
    )
    is_flat = last[0] < first[0] * 1.1 + 2 and memory[1] < memory[0] * 1.1 + 2 and last[1] <= first[1] and last[3] <= first[3]
    failures = [name for name in load.counts if any(word in name for word in ("TOO LATE", "FAILED", "CODE"))]
    return is_flat and not failures and not any(last[2].values()) and code == 0
