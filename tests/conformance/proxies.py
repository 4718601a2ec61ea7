"""HAProxy in front of the gateway, with the PROXY protocol."""

import json
import pathlib
import re
import socket
import subprocess
import tempfile
import time

from gateway import Gateway, output
from table import Row, count

CONFIG = """
global
  stats socket {folder}/admin.sock
defaults
  mode tcp
  timeout connect 5s
  timeout client 30s
  timeout server 30s
listen v1
  bind 127.0.0.1:{ports[0]}
  server gateway 127.0.0.1:{gateway} send-proxy
listen v2
  bind 127.0.0.1:{ports[1]}
  server gateway 127.0.0.1:{gateway} send-proxy-v2
listen without
  bind 127.0.0.1:{ports[2]}
  server gateway 127.0.0.1:{gateway}
backend probed
  option httpchk GET /public/x
  server gateway 127.0.0.1:{gateway} send-proxy-v2 check inter 200ms {check}
"""

CLIENT = "127.0.0.7"


def haproxy(application):
    tool = "HAProxy " + re.search(r"version ([\d.]+)", output(["/usr/sbin/haproxy", "-v"])[1])[1]
    trusted = 'trusted_proxies = ["127.0.0.1/32"]\nproxy_protocol = true'
    for tls in (False, True):
        with Gateway({"app": application.url}, server=trusted, tls=tls) as gateway, tempfile.TemporaryDirectory() as folder:
            ports = [free_port() for _ in range(3)]
            file = pathlib.Path(folder) / "haproxy.cfg"
            check = "check-send-proxy" + (" check-ssl verify none" if tls else "")
            file.write_text(CONFIG.format(folder=folder, ports=ports, gateway=gateway.port, check=check))
            process = subprocess.Popen(["/usr/sbin/haproxy", "-f", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                yield from relayed(tool, gateway, ports, tls, pathlib.Path(folder) / "admin.sock")
            finally:
                process.terminate()
                process.wait()


def relayed(tool, gateway, ports, tls, stats):
    over = "TLS" if tls else "cleartext"
    for port in ports:
        wait_for(port)
    for name, port in [("send-proxy", ports[0]), ("send-proxy-v2", ports[1])]:
        checks = {}
        for version in ["--http1.1", "--http2" if tls else "--http2-prior-knowledge"]:
            shown = ask(gateway, port, version)
            checks[f"{version[2:8]}: the client's address"] = address(shown) == [CLIENT]
            forged = ask(gateway, port, version, "-H", "x-forwarded-for: 192.0.2.1")
            checks[f"{version[2:8]}: not one that it claims"] = address(forged)[-1:] == [CLIENT] or address(forged) == [CLIENT]
        yield count(tool, f"`{name}`, {over}", checks)
    shown = ask(gateway, ports[2], "--http1.1")
    yield Row(tool, f"without the header, {over}", "the gateway closes the connection" if shown is None else "answered", shown is None)
    probed = False
    until = time.monotonic() + 10
    while not probed and time.monotonic() < until:
        time.sleep(0.2)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(stats))
            client.sendall(b"show stat\n")
            table = b"".join(iter(lambda: client.recv(65536), b"")).decode()
        probed = any(line.startswith("probed,gateway,") and ",UP," in line for line in table.splitlines())
    yield Row(tool, f"health checks (`check-send-proxy`), {over}", "UP" if probed else "down", probed)


def ask(gateway, port, *options):
    """What the application received, or `None`."""
    command = ["curl", "-sSk", "--interface", CLIENT, *options, f"{gateway.scheme}://127.0.0.1:{port}/public/x"]
    code, printed = output(command)
    return json.loads(printed) if code == 0 else None


def address(shown):
    values = [value for name, value in (shown or {"fields": []})["fields"] if name.lower() == "x-forwarded-for"]
    return [item.strip() for value in values for item in value.split(",")]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def wait_for(port):
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.05)
