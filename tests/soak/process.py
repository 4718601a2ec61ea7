"""A gateway process, watched from outside."""

import base64
import hashlib
import hmac
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
BINARY = pathlib.Path(os.environ.get("PORTCULLIS") or ROOT / "target/release/portcullis").resolve()

SECRET = "a secret of the long tests, long enough for HS256"
OPERATOR = "the-token-of-the-operators"


class Process:
    """One process, started on this file. Returns once it serves."""

    def __init__(self, file):
        self.events = []
        self.process = subprocess.Popen([BINARY, "--config", file], stdout=subprocess.PIPE, text=True)
        threading.Thread(target=self._read, daemon=True).start()
        ready = self.until("ready")
        self.port = int(ready["listen"].rsplit(":", 1)[1])
        self.admin = int(ready["admin"].rsplit(":", 1)[1])

    def _read(self):
        for line in self.process.stdout:
            event = json.loads(line)
            # Access lines, which are off, would be too many to keep.
            self.events.append(event)

    def until(self, message, seconds=30):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = next((event for event in self.events if event.get("message") == message), None)
            if found:
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.002)
        raise SystemExit(f"the gateway did not say “{message}”: {self.events[-3:]}")

    def ask(self, path, method="GET", body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.admin}{path}", method=method, data=body and json.dumps(body).encode())
        request.add_header("authorization", f"Bearer {OPERATOR}")
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.read().decode()

    def metric(self, name):
        found = re.findall(rf"^{name}(?:\{{[^}}]*\}})? ([0-9.e+-]+)$", self.ask("/metrics"), re.MULTILINE)
        return sum(float(value) for value in found)

    def memory(self):
        """Resident, in MiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def signal(self, name):
        self.process.send_signal(getattr(signal, f"SIG{name}"))

    def stop(self):
        self.signal("TERM")
        return self.process.wait(60)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def token(subject, **claims):
    """A token of the issuer `local`."""
    now = int(time.time())
    claims = {"iss": "soak", "aud": "soak", "sub": subject, "iat": now, "exp": now + 7200, "roles": ["user"], **claims}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signed = b".".join(parts)
    signature = hmac.new(SECRET.encode(), signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


def configuration(folder, port="0", admin="0", server="", upstreams="", routes=""):
    """Writes a file and returns its path."""
    folder = pathlib.Path(folder)
    (folder / "soak.secret").write_text(SECRET)
    (folder / "admin.token").write_text(OPERATOR)
    os.chmod(folder / "admin.token", 0o600)
    os.chmod(folder / "soak.secret", 0o600)
    file = folder / "gateway.toml"
    file.write_text(f"""
[server]
listen = "127.0.0.1:{port}"
{server}
[admin]
listen = "127.0.0.1:{admin}"
token = {{ file = "admin.token" }}
[log]
access = false
[issuer.local]
issuer = "soak"
audience = ["soak"]
algorithms = ["HS256"]
secret = {{ file = "soak.secret" }}
{upstreams}
{routes}
""")
    return file
