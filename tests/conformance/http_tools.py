"""h2load, nghttp and curl: ordinary exchanges, in every version of HTTP."""

import json
import re

from gateway import Gateway, output
from table import Row, count


def h2load(application):
    _, printed = output(["h2load", "--version"])
    tool = "h2load " + printed.split("/")[-1].strip()
    with Gateway({"app": application.url}) as clear, Gateway({"app": application.url}, tls=True) as tls:
        upload = clear.path / "upload"
        upload.write_bytes(b"u" * 65536)
        runs = [
            ("HTTP/2 over cleartext, with a token", clear, "/app/x", ["-n20000", "-c20", "-m50"]),
            ("HTTP/2 over TLS, with a token", tls, "/app/x", ["-n20000", "-c20", "-m50"]),
            ("HTTP/1.1 over TLS, with a token", tls, "/app/x", ["-n5000", "-c20", "--h1"]),
            ("uploads of 64 KiB over HTTP/2", tls, "/app/x", ["-n2000", "-c10", "-m20", "-d", upload]),
            ("responses of 10 MiB, stream windows of 16 KiB", tls, "/app/large", ["-n50", "-c5", "-m4", "-w14", "-W16"]),
        ]
        for run, gateway, path, options in runs:
            token = f"authorization: Bearer {gateway.token()}"
            _, printed = output(["h2load", *options, "-H", token, gateway.url(path)], timeout=300)
            found = re.search(r"requests: (\d+) total.* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", printed)
            total, succeeded = (int(found[1]), int(found[2])) if found else (0, -1)
            yield Row(tool, run, f"{succeeded:,} of {total:,} requests succeeded", total == succeeded)


def nghttp(application):
    _, printed = output(["nghttp", "--version"])
    tool = "nghttp " + printed.split("/")[-1].strip()
    with Gateway({"app": application.url}, tls=True) as gateway, Gateway({"app": application.url}) as clear:
        upload = gateway.path / "upload"
        upload.write_bytes(b"u" * 300_000)

        def ask(where, *options, path="/public/x"):
            return output(["nghttp", "-v", *options, where.url(path)])[1]

        def received(printed):
            found = re.search(r'"received": (\d+)', printed)
            return int(found[1]) if found else None

        status = re.compile(r":status: (\d+)")
        many = ask(gateway, "-m", "100")
        yield count(tool, "over TLS and cleartext", {
            "ALPN h2": ":status: 200" in ask(gateway) and "negotiated protocol: h2" in ask(gateway),
            "prior knowledge": ":status: 200" in ask(clear),
            "100 requests on one connection": status.findall(many) == ["200"] * 100,
            "an upload of 300,000 bytes": received(ask(gateway, "-d", upload)) == 300_000,
            "an upload without content-length": received(ask(gateway, "-d", upload, "--no-content-length")) == 300_000,
            "Expect: 100-continue": received(ask(gateway, "-d", upload, "--expect-continue")) == 300_000,
            "trailers of a request": "\"trailers\": [\"x-sum: 1\"]" in ask(gateway, "-d", upload, "--no-content-length", "--trailer", "x-sum: 1"),
            "trailers of a response": "x-end: reached" in ask(gateway, "-H", "te: trailers", path="/public/chunked"),
            "no trailers without te": "x-end: reached" not in ask(gateway, path="/public/chunked"),
            "windows of 1 KiB": ":status: 200" in ask(gateway, "-w10", "-W10", path="/public/chunked"),
            "padding": ":status: 200" in ask(gateway, "-b", "100"),
            "HEAD": ":status: 200" in ask(gateway, "-H", ":method: HEAD"),
            "no route": ":status: 404" in ask(gateway, path="/nothing"),
            "no token": ":status: 401" in ask(gateway, path="/app/x"),
        })
        _, printed = output(["nghttp", "-v", "-u", clear.url("/public/x")])
        yield Row(
            tool, "`Upgrade: h2c` from HTTP/1.1", "the request is answered over HTTP/1.1",
            "HTTP/1.1 200 OK" in printed,
            "The gateway does not follow this upgrade, which RFC 9113 §3.1 has removed; nghttp then gives up",
        )


def curl(application):
    _, printed = output(["curl", "--version"])
    tool = "curl " + printed.split()[1]
    with Gateway({"app": application.url}) as clear, Gateway({"app": application.url}, tls=True) as tls:
        upload = clear.path / "upload"
        upload.write_bytes(b"u" * 3_000_000)
        bearer = {gateway: ["-H", f"authorization: Bearer {gateway.token()}"] for gateway in (clear, tls)}
        write = ["-w", "\n%{http_code} %{http_version} %{size_download}"]

        def ask(where, *options, path="/public/x"):
            _, printed = output(["curl", "-sSk", *write, *options, where.url(path)])
            return printed

        def ends(printed, expected):
            return printed.rsplit("\n", 1)[-1].startswith(expected)

        def shown(printed):
            try:
                return json.loads(printed.rsplit("\n", 1)[0].rsplit("\r\n\r\n", 1)[-1])
            except ValueError:
                return {"received": None, "fields": []}

        def fields(printed, name):
            return [value for field, value in shown(printed)["fields"] if field.lower() == name]

        checks = {}
        for name, option, version in [("HTTP/1.0", "--http1.0", "1"), ("HTTP/1.1", "--http1.1", "1.1"), ("HTTP/2", "--http2-prior-knowledge", "2")]:
            for where, over in [(clear, "cleartext"), (tls, "TLS")]:
                option_here = "--http2" if version == "2" and where is tls else option
                checks[f"{name} over {over}"] = ends(ask(where, option_here), f"200 {version}")
                sent = shown(ask(where, option_here, "-T", upload))
                checks[f"upload, {name} over {over}"] = sent["received"] == 3_000_000
                checks[f"10 MiB, {name} over {over}"] = ends(ask(where, option_here, "-o", "/dev/null", path="/public/large"), f"200 {version} 10485760")
                checks[f"HEAD, {name} over {over}"] = ends(ask(where, option_here, "-I", path="/public/large"), f"200 {version}")
        chunked = ["-H", "transfer-encoding: chunked", "-T", upload]
        checks |= {
            "a chunked upload": shown(ask(clear, "--http1.1", *chunked))["received"] == 3_000_000,
            "Expect: 100-continue": shown(ask(clear, "--http1.1", "-H", "expect: 100-continue", "-T", upload))["received"] == 3_000_000,
            "a refused upload, before its body": ends(ask(clear, "--http1.1", "-H", "expect: 100-continue", "-T", upload, path="/app/x"), "401 1.1"),
            "a refused upload, while it runs": ends(ask(clear, "--http1.1", "-H", "expect:", "-T", upload, path="/app/x"), "401 1.1"),
            "a refused upload, HTTP/2": ends(ask(tls, "--http2", "-T", upload, path="/app/x"), "401 2"),
            "chunks to HTTP/1.0": "data: 4" in ask(clear, "--http1.0", path="/public/chunked"),
            "the caller's identity": fields(ask(clear, *bearer[clear]), "x-auth-user") == [] and fields(ask(clear, *bearer[clear], path="/app/x"), "x-auth-user") == ["alice"],
            "a forged identity": fields(ask(tls, *bearer[tls], "-H", "x-auth-user: root", "-H", "X_Auth_User: root", path="/app/x"), "x-auth-user") == ["alice"],
            "OPTIONS *": ends(ask(clear, "-X", "OPTIONS", "--request-target", "*"), "400 1.1"),
            "an absolute target": ends(ask(clear, "--request-target", clear.url("/public/x")), "200 1.1"),
            "dot segments": ends(ask(clear, "--path-as-is", path="/public/../app/x"), "400 1.1"),
            "an event stream": "data: 4" in ask(tls, "--http2", "-N", path="/public/events"),
            "50 requests in parallel": ask(tls, "--http2", "-Z", *[tls.url(f"/public/{n}") for n in range(49)]).count("200 2") == 50,
            "plain HTTP on the TLS port": output(["curl", "-sS", "-w", "%{http_code}", "-o", "/dev/null", tls.url("/public/x").replace("https", "http")])[1] == "400",
        }
        yield count(tool, "exchanges, uploads and refusals", checks)
