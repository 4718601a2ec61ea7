"""The gateway under test, with the tokens and certificates that the tools need."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BINARY = pathlib.Path(os.environ.get("PORTCULLIS") or ROOT / "target/release/portcullis").resolve()

CONFIG = """
[server]
listen = "127.0.0.1:0"
drain_delay = "0s"
{server}
[server.limits]
header_timeout = "5s"
body_idle_timeout = "5s"
idle_timeout = "10s"
[admin]
listen = "127.0.0.1:0"
[issuer.local]
issuer = "conformance"
audience = ["conformance"]
algorithms = ["HS256"]
secret = {{ file = "local.secret", create = true }}
[[route]]
path = "/public/*"
upstream = "app"
access = "public"
[[route]]
path = "/app/*"
upstream = "app"
roles = ["user"]
{more}
"""

TLS = 'tls = { certificate = "tls.pem", private_key = { file = "tls.key" } }'


class Gateway:
    """A running gateway in a temporary folder. `upstreams`: name → URL, or all keys of its section."""

    def __init__(self, upstreams, server="", more="", tls=False):
        self.folder = tempfile.TemporaryDirectory(prefix="conformance-")
        self.path = pathlib.Path(self.folder.name)
        if tls:
            certificate(self.path)
            server += "\n" + TLS
        sections = [section(name, keys) for name, keys in upstreams.items()]
        self.file = self.path / "gateway.toml"
        self.file.write_text(CONFIG.format(server=server, more="\n".join([more, *sections])))
        self.scheme = "https" if tls else "http"
        self.process = subprocess.Popen([BINARY, "--config", self.file], stdout=subprocess.PIPE, text=True)
        self.log = []
        for line in self.process.stdout:
            event = json.loads(line)
            if event.get("message") == "ready":
                self.port = int(event["listen"].rsplit(":", 1)[1])
                break
            self.log.append(event)
        else:
            sys.exit(f"{BINARY} did not start")
        # Someone must read what it writes, or it stops.
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.log.append(json.loads(line))

    def url(self, path, host="127.0.0.1"):
        return f"{self.scheme}://{host}:{self.port}{path}"

    def token(self, role="user"):
        mint = [BINARY, "--config", self.file, "token", "mint", "--issuer", "local", "--sub", "alice", "--role", role]
        return subprocess.check_output(mint, text=True).strip()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.process.kill()
        self.folder.cleanup()


def section(name, keys):
    """The section of an upstream."""
    keys = {"url": keys} if isinstance(keys, str) else keys
    return "\n".join([f"[upstream.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())])


def certificate(folder):
    """A self-signed certificate for the loopback addresses: tls.pem and tls.key."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
         "-keyout", folder / "tls.key", "-out", folder / "tls.pem"],
        check=True, capture_output=True,
    )


def version():
    return subprocess.check_output([BINARY, "--version"], text=True).strip()


def output(command, timeout=120, **options):
    """What a tool prints, with its exit code."""
    done = subprocess.run(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        timeout=timeout, check=False, **options,
    )
    return done.returncode, done.stdout
