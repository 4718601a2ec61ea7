#!/usr/bin/env python3
"""A CGI server (RFC 3875) in the old style. It checks no credentials: it listens on loopback, behind the gateway."""

import http.server
import os
import subprocess
import sys
import urllib.parse

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cgi-bin")
ADDRESS = ("127.0.0.1", 9000)


class Handler(http.server.BaseHTTPRequestHandler):
    def run_script(self):
        path, _, query = self.path.partition("?")
        # "/CGI-BIN/whoami.py;jsessionid=1/x" is read as "/cgi-bin/whoami.py/x".
        segments = [segment.partition(";")[0] for segment in urllib.parse.unquote(path).split("/")[1:]]
        scripts = {name.lower(): name for name in os.listdir(FOLDER) if name.endswith(".py")}
        if segments == [""]:
            return self.reply(200, "text/plain", b"/cgi-bin/whoami.py\n/cgi-bin/admin.py\n")
        if len(segments) < 2 or segments[0].lower() != "cgi-bin" or segments[1].lower() not in scripts:
            return self.reply(404, "text/plain", b"no such script\n")
        if "Transfer-Encoding" in self.headers:
            return self.reply(411, "text/plain", b"CGI needs a Content-Length\n")
        script = scripts[segments[1].lower()]
        length = int(self.headers.get("Content-Length") or 0)
        environment = {
            "GATEWAY_INTERFACE": "CGI/1.1",
            "SERVER_PROTOCOL": self.request_version,
            "SERVER_NAME": ADDRESS[0],
            "SERVER_PORT": str(ADDRESS[1]),
            "REQUEST_METHOD": self.command,
            "SCRIPT_NAME": f"/cgi-bin/{script}",
            "PATH_INFO": "".join(f"/{segment}" for segment in segments[2:]),
            "QUERY_STRING": query,
            "REMOTE_ADDR": self.client_address[0],
            "CONTENT_LENGTH": str(length),
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "PATH": os.environ.get("PATH", ""),
        }
        for name, value in self.headers.items():
            environment["HTTP_" + name.upper().replace("-", "_")] = value
        run = [sys.executable, os.path.join(FOLDER, script)]
        done = subprocess.run(run, input=self.rfile.read(length), capture_output=True, env=environment, timeout=30, check=False)
        if done.returncode != 0:
            sys.stderr.buffer.write(done.stderr)
            return self.reply(500, "text/plain", b"the script failed\n")
        head, _, body = done.stdout.partition(b"\n\n")
        fields = dict(line.split(": ", 1) for line in head.decode("latin-1").splitlines())
        status = int(fields.pop("Status", "200").split()[0])
        return self.reply(status, fields.pop("Content-Type", "text/plain"), body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = run_script

    def reply(self, status, kind, body):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


if __name__ == "__main__":
    print(f"CGI scripts of {FOLDER} at http://{ADDRESS[0]}:{ADDRESS[1]}", flush=True)
    http.server.ThreadingHTTPServer(ADDRESS, Handler).serve_forever()
