"""gRPC with grpcio and @grpc/grpc-js, each as client and as server: all four kinds of calls."""

import json
import os
import pathlib
import subprocess
import sys

from gateway import ROOT, Gateway
from table import count

HERE = pathlib.Path(__file__).resolve().parent

ROUTES = """
[[route]]
path = "/shop.Inventory/*"
upstream = "calls"
access = "public"
[[route]]
path = "/shop.Admin/*"
upstream = "calls"
roles = ["admin"]
[limit.few]
requests = 1
per = "1h"
[[route]]
path = "/shop.Few/*"
upstream = "calls"
access = "public"
limit = "few"
[[route]]
path = "/shop.Away/*"
upstream = "away"
access = "public"
"""


class Peer:
    """A program that answers each line with one."""

    def __init__(self, command, **options):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def stop(self):
        self.process.kill()
        self.process.wait()


def python():
    return Peer([sys.executable, ROOT / "tests/peers/calls.py"])


def node():
    return Peer(["node", HERE / "calls.cjs"], env={**os.environ, "NODE_PATH": os.environ["CONFORMANCE_NODE"]})


def grpc(application):
    peers = {"grpcio": python, "@grpc/grpc-js": node}
    versions = {name: start().ask(version=True)["version"] if name != "grpcio" else grpcio() for name, start in peers.items()}
    for server_name, start_server in peers.items():
        server = start_server()
        port = server.ask(serve=True)["port"]
        calls = {"url": f"http://127.0.0.1:{port}", "http2": True, "response_timeout": "3m"}
        services = {"calls": calls, "away": {"url": "http://127.0.0.1:1", "http2": True}}
        with Gateway({"app": application.url, **services}, more=ROUTES) as gateway:
            for client_name, start_client in peers.items():
                client = start_client()
                run = f"client, a server of {server_name}"
                yield count(f"{client_name} {versions[client_name]}", run, calls_of(client, gateway))
                client.stop()
            client = python()
            # Servers end connections that are asked for signs of life too often meanwhile.
            late = client.ask(call="Unary", address=f"127.0.0.1:{gateway.port}", messages=["sleep 100"], service="shop.Inventory", timeout=150)
            yield count(f"{server_name} {versions[server_name]}", "server that is silent for 100 s", {"unary": late["code"] == 0})
            client.stop()
        server.stop()


def grpcio():
    from importlib.metadata import version
    return version("grpcio")


def calls_of(client, gateway):
    address = f"127.0.0.1:{gateway.port}"

    def call(kind, messages, service="shop.Inventory", **more):
        answer = client.ask(call=kind, address=address, messages=messages, service=service, **more)
        return answer["code"], answer

    def says(kind, messages, expected, trailer=None):
        code, answer = call(kind, messages)
        said = [message.split("|")[0] for message in answer["messages"]]
        return code == 0 and said == expected and (trailer is None or answer["trailers"].get("x-end") == trailer)

    wrong = {"authorization": f"Bearer {gateway.token()}"}
    many = [str(number) for number in range(200)]
    large = "z" * 3_000_000
    refused = call("Unary", ["x"], "shop.Admin")[1]
    # The limit is spent by the first client.
    call("Unary", ["x"], "shop.Few")
    return {
        "unary": says("Unary", ["hello"], ["hello"], "of unary"),
        "server streaming": says("Down", ["200"], many, "of down"),
        "client streaming": says("Up", many, [" ".join(many)]),
        "both directions, in turn": says("Both", many, many),
        "a message of 3 MB": says("Unary", [large], [large]),
        "an error of the service": (call("Unary", ["fail"])[0], call("Unary", ["fail"])[1]["details"]) == (15, "it failed"),
        "metadata of 40 kB": call("Unary", ["large"])[1]["initial"].get("x-large") == 40_000,
        "a deadline": call("Unary", ["sleep 5"], timeout=0.5)[0] == 4,
        "16, no token": (refused["code"], refused["details"]) == (16, "credentials_missing"),
        "7, role missing": call("Unary", ["x"], "shop.Admin", metadata=wrong)[0] == 7,
        "8, limit": call("Unary", ["x"], "shop.Few")[0] == 8,
        "12, no route": call("Unary", ["x"], "shop.Nothing")[0] == 12,
        "14, service away": call("Unary", ["x"], "shop.Away")[0] == 14,
    }
