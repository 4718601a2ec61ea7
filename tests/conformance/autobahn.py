"""Autobahn's test suite for WebSockets, through the tunnel and without it: each case must behave the same.

The suite needs Python 2.7. scripts/conformance installs it into a folder and names both in the environment.
"""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time

from gateway import Gateway
from table import Row

ROUTE = '[[route]]\npath = "/ws/*"\nupstream = "ws"\naccess = "public"'

TOOL = "autobahntestsuite 25.10.1"


def wstest(*arguments):
    """The command line of the suite."""
    python = os.environ["AUTOBAHN_PYTHON"]
    # Its packages share a namespace, which Python 2.7 finds only in a site folder.
    code = "import os, site; site.addsitedir(os.environ['AUTOBAHN_FOLDER']); from autobahntestsuite.wstest import run; run()"
    return [python, "-W", "ignore", "-c", code, *arguments]


@contextlib.contextmanager
def echo():
    """The suite's own server, which sends every message back. Yields its section as an upstream."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = wstest("-m", "testeeserver", "-w", f"ws://127.0.0.1:{port}")
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                time.sleep(0.1)
        # It accepts no other host than its own.
        yield {"url": f"http://127.0.0.1:{port}", "host": f"127.0.0.1:{port}"}
    finally:
        server.terminate()
        server.wait()


def client(url, folder, cases, without):
    """Starts these cases against this server; the report is in the folder."""
    specification = {
        "outdir": str(folder), "servers": [{"agent": "server", "url": url}],
        "cases": cases, "exclude-cases": without, "exclude-agent-cases": {},
    }
    file = pathlib.Path(folder) / "spec.json"
    file.write_text(json.dumps(specification))
    command = wstest("-m", "fuzzingclient", "-s", str(file))
    log = (pathlib.Path(folder) / "log").open("w")
    return subprocess.Popen(command, stdout=log, stderr=log)


def behaviours(folder):
    """Case → how the server behaved, and how it closed."""
    report = json.loads((pathlib.Path(folder) / "index.json").read_text())
    return {case: (seen["behavior"], seen["behaviorClose"]) for case, seen in report["server"].items()}


# What is run, the patterns of its cases, those without, how many there are, and seconds. Compression takes long: the suite
# itself compresses and compares up to 1,000 messages of 128 KiB in each case.
PARTS = [
    ("frames, pings, fragments, UTF-8, closing (1 to 7, 10)", ["*"], ["9.*", "12.*", "13.*"], 247, 600),
    ("large messages, many messages (9)", ["9.*"], [], 54, 600),
    ("compression (12)", ["12.*"], [], 90, 3600),
    ("compression with other parameters (13)", ["13.*"], [], 126, 3600),
]


def autobahn(_application):
    if "AUTOBAHN_PYTHON" not in os.environ:
        yield Row(TOOL, "all cases through the tunnel", "not run", False, "No Python 2.7 was found on this machine")
        return
    for name, *part in PARTS:
        yield compared(name, *part)


def compared(name, cases, without, count, seconds):
    """The row of one part: the same cases through the gateway and without it, at the same time."""
    with tempfile.TemporaryDirectory() as direct, tempfile.TemporaryDirectory() as through:
        with echo() as server, echo() as other, Gateway({"app": other, "ws": other}, more=ROUTE) as gateway:
            targets = [
                (f"ws://{server['host']}", direct),
                (gateway.url("/ws/x").replace("http", "ws"), through),
            ]
            clients = [client(url, folder, cases, without) for url, folder in targets]
            try:
                for one in clients:
                    one.wait(timeout=seconds)
            except subprocess.TimeoutExpired:
                begun = (pathlib.Path(through) / "log").read_text().count("Running test case ID")
                return Row(TOOL, name, f"{begun} of {count} cases begun in {seconds} seconds", False)
            finally:
                for one in clients:
                    one.kill()
                    one.wait()
        expected, seen = behaviours(direct), behaviours(through)
    differ = sorted(case for case in expected if seen.get(case) != expected[case])
    counts = {}
    for behaviour, _ in seen.values():
        counts[behaviour] = counts.get(behaviour, 0) + 1
    shown = ", ".join(f"{number} {name}" for name, number in sorted(counts.items()))
    text = f"{len(seen) - len(differ)} of {len(expected)} cases behave as without the gateway ({shown})"
    if differ:
        text += "; differ: " + ", ".join(f"{case} {expected[case]} → {seen.get(case)}" for case in differ[:10])
    return Row(TOOL, name, text, not differ and len(expected) == count)
