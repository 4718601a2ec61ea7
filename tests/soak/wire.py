"""The runs of scripts/soak-wire."""

import argparse
import asyncio
import resource
import statistics
import sys
import tempfile
import time

import application
import mixed
import unread
import websocket
from process import Process, configuration, free_port, token

UPSTREAM = '[upstream.app]\nurl = "http://127.0.0.1:{port}"\n'


def replace(_minutes):
    """Ten new processes on the same file, while requests come at a fixed rate."""
    backend, port = application.start()
    with tempfile.TemporaryDirectory() as folder:
        public, admin = free_port(), free_port()
        server = 'drain_delay = "3s"\ndrain_timeout = "10s"'
        file = configuration(folder, public, admin, server, UPSTREAM.format(port=port), application.ROUTES)
        current = Process(file)
        seen = {"requests": 0, "refused connections": 0, "other failures": 0}
        slowest, causes = [0.0], set()

        async def successors():
            nonlocal current
            for _ in range(10):
                current.signal("TERM")
                await asyncio.to_thread(current.until, "draining")
                new = await asyncio.to_thread(Process, file)
                print(f"replace: process {new.process.pid} serves, {seen}", flush=True)
                code = await asyncio.to_thread(current.process.wait, 60)
                assert code == 0, code
                current = new
                await asyncio.sleep(0.5)

        rate = asyncio.run(load(public, successors, seen, slowest, causes))
        current.stop()
    backend.kill()
    lost = seen["refused connections"] + seen["other failures"]
    print(f"replace: 10 successors, {seen}, {rate:.0f} requests a second, the slowest took {slowest[0] * 1000:.0f} ms {causes or ''}")
    return lost == 0 and rate > 900


async def load(port, meanwhile, seen, slowest, causes, rate=1000):
    """Requests at this rate until `meanwhile` has ended: half of them on a new connection each. Returns the rate."""
    kept, running = [], set()

    async def one(is_new):
        begun = time.monotonic()
        seen["requests"] += 1
        try:
            # As every client does, do not use a kept connection that the server has closed.
            while not is_new and kept and kept[-1][0].at_eof():
                kept.pop()[1].close()
            reader, writer = kept.pop() if kept and not is_new else await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /public/x HTTP/1.1\r\nhost: soak\r\n" + (b"connection: close\r\n\r\n" if is_new else b"\r\n"))
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(2)
            if not head.startswith(b"HTTP/1.1 200"):
                raise ConnectionError(head.split(b"\r\n")[0])
            if b"connection: close" in head.lower():
                writer.close()
            else:
                kept.append((reader, writer))
        except ConnectionRefusedError:
            seen["refused connections"] += 1
        except (OSError, asyncio.IncompleteReadError) as error:
            seen["other failures"] += 1
            causes.add(repr(error))
        slowest[0] = max(slowest[0], time.monotonic() - begun)

    task = asyncio.create_task(meanwhile())
    begun, started = time.monotonic(), 0
    while not task.done():
        # A machine that cannot keep up gets fewer requests, not a queue of them.
        while started < (time.monotonic() - begun) * rate and len(running) < 500:
            started += 1
            new = asyncio.create_task(one(started % 2 == 0))
            running.add(new)
            new.add_done_callback(running.discard)
        await asyncio.sleep(0.01)
    await task
    seconds = time.monotonic() - begun
    await asyncio.gather(*running)
    for _, writer in kept:
        writer.close()
    return seen["requests"] / seconds


def tunnels(_minutes):
    """Open WebSockets: what each costs, and how fast a revocation finds its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    most = min(10_000, (hard - 400) // 2)
    backend, port = application.start()
    with tempfile.TemporaryDirectory() as folder:
        file = configuration(folder, server=f"[server.limits]\nmax_connections = {most + 20}", upstreams=UPSTREAM.format(port=port), routes=application.ROUTES)
        gateway = Process(file)
        try:
            return asyncio.run(measure_tunnels(gateway, most))
        finally:
            gateway.signal("KILL")
            backend.kill()


async def measure_tunnels(gateway, most):
    before = gateway.memory()
    opened = []
    for number in range(most):
        # The last 1,000 belong to one person.
        subject = "many" if number >= most - 1000 else f"u{number}"
        own = token(subject, sid=f"s{number}", jti=f"j{number}")
        local = (f"127.0.1.{number % 4 + 1}", 0)
        opened.append(await websocket.connect(gateway.port, own, local=local))
    for reader, writer in opened:
        writer.write(websocket.frame(b"hello"))
        assert await websocket.read(reader) == (1, b"hello")
    held = gateway.memory()
    quiet = await latencies(gateway, 2)
    ended = []
    busy = asyncio.create_task(latencies(gateway, 2))
    for number in range(0, 100):
        begun = time.monotonic()
        await asyncio.to_thread(gateway.ask, "/revoke", "POST", {"sid": f"s{number * 80}"})
        reader, writer = opened[number * 80]
        opcode, payload = await asyncio.wait_for(websocket.read(reader), 5)
        ended.append(time.monotonic() - begun)
        assert opcode == 8 and payload[:2] == b"\x03\xf0", payload
    disturbed = await busy
    begun = time.monotonic()
    await asyncio.to_thread(gateway.ask, "/revoke", "POST", {"subject": "many"})
    for reader, _ in opened[most - 1000 :]:
        assert (await asyncio.wait_for(websocket.read(reader), 5))[0] == 8
    all_ended = time.monotonic() - begun
    others = [opened[number] for number in (1, 2, 3, most - 1001)]
    for reader, writer in others:
        writer.write(websocket.frame(b"still"))
        assert await websocket.read(reader) == (1, b"still")
    for _, writer in opened:
        writer.close()
    print(
        f"tunnels: {most} open, {before:.1f} MiB before, {held:.1f} MiB with them: {(held - before) * 1024 / most:.1f} KiB each; "
        f"100 revocations of one, from the request to its close frame: median {statistics.median(ended) * 1000:.1f} ms, slowest {max(ended) * 1000:.1f} ms; "
        f"one that ends 1,000: {all_ended * 1000:.0f} ms; requests beside them, median and p99: {show(quiet)} without, {show(disturbed)} with revocations"
    )
    return max(ended) < 1 and all_ended < 1


def show(times):
    times = sorted(times)
    return f"{statistics.median(times) * 1000:.2f} ms, {times[len(times) * 99 // 100] * 1000:.2f} ms"


async def latencies(gateway, seconds):
    """The times of requests, one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    until, times = time.monotonic() + seconds, []
    while time.monotonic() < until:
        begun = time.monotonic()
        writer.write(b"GET /public/x HTTP/1.1\r\nhost: soak\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
        times.append(time.monotonic() - begun)
        await asyncio.sleep(0.002)
    writer.close()
    return times


RUNS = {"replace": replace, "tunnels": tunnels, "unread": unread.run, "mixed": mixed.run}


def main():
    parser = argparse.ArgumentParser(prog="scripts/soak-wire")
    parser.add_argument("runs", nargs="*", choices=[*RUNS, []], default=[])
    parser.add_argument("--minutes", type=float, default=20, help="how long `mixed` takes")
    asked = parser.parse_args()
    passed = [RUNS[name](asked.minutes) for name in asked.runs or RUNS]
    sys.exit(0 if all(passed) else 1)
