"""Runs the tools and writes the table: see scripts/conformance."""

import sys

from application import Application
from autobahn import autobahn
from gateway import ROOT, version
from grpc_tools import grpc
from hostile import slowhttptest
from http_tools import curl, h2load, nghttp
from proxies import haproxy
from table import write
from tls_tools import chromium, sslyze

TOOLS = {
    "autobahn": autobahn, "chromium": chromium, "curl": curl, "grpc": grpc, "h2load": h2load, "haproxy": haproxy,
    "nghttp": nghttp, "slowhttptest": slowhttptest, "sslyze": sslyze,
}


def main():
    wanted = sys.argv[1:] or list(TOOLS)
    if unknown := set(wanted) - TOOLS.keys():
        sys.exit(f"error: no tool is named {', '.join(unknown)}; there are {', '.join(TOOLS)}")
    application, rows = Application(), []
    for name in wanted:
        for row in TOOLS[name](application):
            print(row.line(), flush=True)
            rows.append(row)
    write(ROOT / "docs/conformance.md", rows, version())
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows) - failed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
