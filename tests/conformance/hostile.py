"""slowhttptest: connections that take as long as they can, while others ask."""

import re
import threading
import time
import urllib.error
import urllib.request

from gateway import Gateway, output
from table import Row

RUNS = [
    ("slow headers (slowloris)", ["-H", "-i", "8", "-t", "GET"], "/public/x"),
    ("slow bodies", ["-B", "-i", "8", "-s", "8192", "-t", "POST"], "/public/x"),
    ("overlapping ranges", ["-R", "-a", "10", "-b", "3000", "-t", "HEAD"], "/public/large"),
    ("slow reading", ["-X", "-w", "10", "-y", "20", "-n", "5", "-z", "32", "-k", "3"], "/public/large"),
]


class Others:
    """Another client, which asks five times a second for what the gateway answers itself: 404."""

    def __init__(self, url):
        self.url, self.times, self.failed, self.going = url, [], [], True
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        while self.going:
            begun = time.monotonic()
            try:
                urllib.request.urlopen(self.url, timeout=10).close()
            except urllib.error.HTTPError as answer:
                answer.close()
            except OSError as error:
                self.failed.append(str(error))
            self.times.append(time.monotonic() - begun)
            time.sleep(0.2)

    def stop(self):
        self.going = False
        self.thread.join()


def slowhttptest(application):
    tool = "slowhttptest " + re.search(r"version ([\d.]+)", output(["slowhttptest", "-h"])[1] + " version 1.8.2")[1]
    for run, options, path in RUNS:
        with Gateway({"app": application.url}) as gateway:
            others = Others(gateway.url("/nothing"))
            common = ["-c", "1000", "-r", "200", "-l", "40", "-p", "3"]
            _, printed = output(["slowhttptest", *options, *common, "-u", gateway.url(path)], timeout=120)
            others.stop()
            printed = re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", printed)
            left = re.findall(r"Exit status: *([^\n]*)", printed)
            unavailable = "NO" in re.findall(r"service available: *(\w+)", printed)[1:]
            seen = f"1,000 connections; it ended with “{left[-1].strip() if left else '?'}”; {len(others.times)} requests of another client: {len(others.failed)} failed, the slowest took {max(others.times) * 1000:.0f} ms"
            why = "These clients do read; one that reads nothing for `idle_timeout` is closed" if run == "slow reading" else ""
            yield Row(tool, run, seen, not others.failed and not unavailable and bool(left), why)
