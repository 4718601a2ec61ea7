"""sslyze and Chromium: TLS as a scanner and a browser see it."""

import json
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from gateway import Gateway, output
from table import Row, count

OLD = ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"]

ASKED = [
    "--mozilla_config=intermediate", "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3", "--compression",
    "--early_data", "--heartbleed", "--openssl_ccs", "--robot", "--reneg", "--ems", "--elliptic_curves", "--fallback", "--certinfo",
]

# What a page does, with the results that it must get.
PAGE = """
const done = arguments[0];
const wait = (made, limit) => Promise.race([made, new Promise(go => setTimeout(go, limit, 'too late'))]);
(async () => {
  const result = {};
  result['the page over HTTP/2'] = performance.getEntriesByType('navigation')[0].nextHopProtocol === 'h2';
  const many = await Promise.all([...Array(60).keys()].map(n => fetch('/public/x?' + n).then(r => r.status)));
  result['60 requests at once'] = many.every(status => status === 200);
  result['all of them over HTTP/2'] = performance.getEntriesByType('resource').every(e => e.nextHopProtocol === 'h2');
  const upload = await fetch('/public/x', {method: 'POST', body: new Uint8Array(1 << 20)}).then(r => r.json());
  result['an upload of 1 MiB'] = upload.received === 1 << 20;
  result['a response of 10 MiB'] = (await fetch('/public/large').then(r => r.arrayBuffer())).byteLength === 10485760;
  result['a refusal'] = (await fetch('/app/x')).status === 401;
  const early = await fetch('/app/x', {method: 'POST', body: new Uint8Array(1 << 22)}).then(r => r.status, e => String(e));
  result['a refused upload'] = early === 401;
  result['an event stream'] = await wait(new Promise(go => {
    let seen = 0; const events = new EventSource('/public/events');
    events.onmessage = () => { if (++seen === 5) { events.close(); go(true); } };
    events.onerror = () => go(false);
  }), 5000) === true;
  const aborted = new AbortController();
  const large = fetch('/public/large', {signal: aborted.signal}).then(r => { aborted.abort(); return r.arrayBuffer(); });
  result['a request that the page aborts'] = await large.then(() => false, e => e.name === 'AbortError');
  result['a WebSocket beside it'] = await wait(new Promise(go => {
    const socket = new WebSocket('wss://' + location.host + '/public/ws');
    socket.onopen = () => socket.send('hello');
    socket.onmessage = message => { socket.close(); go(message.data === 'hello'); };
    socket.onerror = () => go(false);
  }), 20000) === true;
  result['the connection is still used'] = (await fetch('/public/last')).status === 200;
  return result;
})().then(done, error => done({[String(error)]: false}));
"""


def sslyze(application):
    scanner = [sys.executable, "-m", "sslyze"]
    tool = "sslyze " + subprocess.check_output([sys.executable, "-c", "import sslyze.__version__ as v; print(v.__version__)"], text=True).strip()
    with Gateway({"app": application.url}, tls=True) as gateway:
        found = gateway.path / "sslyze.json"
        _, printed = output([*scanner, *ASKED, f"--json_out={found}", f"127.0.0.1:{gateway.port}"], timeout=300)
        scan = json.loads(found.read_text())["server_scan_results"][0]["scan_result"]
    result = {name: (part or {}).get("result") or {} for name, part in scan.items()}

    def suites(version):
        return [one["cipher_suite"]["name"] for one in result[f"{version}_cipher_suites"]["accepted_cipher_suites"]]

    modern = suites("tls_1_2") + suites("tls_1_3")
    checks = {f"no {version}": suites(version) == [] for version in OLD}
    checks |= {
        "TLS 1.2 and 1.3": suites("tls_1_2") != [] and suites("tls_1_3") != [],
        "only AEAD with forward secrecy": all("GCM" in name or "POLY1305" in name for name in modern) and all("ECDHE" in name for name in suites("tls_1_2")),
        "no compression": result["tls_compression"].get("supports_compression") is False,
        "no early data": result["tls_1_3_early_data"].get("supports_early_data") is False,
        "Heartbleed": result["heartbleed"].get("is_vulnerable_to_heartbleed") is False,
        "CCS injection": result["openssl_ccs_injection"].get("is_vulnerable_to_ccs_injection") is False,
        "ROBOT": "NOT_VULNERABLE" in str(result["robot"].get("robot_result")),
        "renegotiation by the client": result["session_renegotiation"].get("is_vulnerable_to_client_renegotiation_dos") is False,
        "extended master secret": result["tls_extended_master_secret"].get("supports_ems_extension") is True,
        "elliptic curves": "X25519" in str(result["elliptic_curves"].get("supported_curves")),
    }
    yield count(tool, "versions, cipher suites, known attacks", checks)
    findings = re.findall(r"^ +\* (\w+): ", printed, re.MULTILINE)
    yield Row(
        tool, "Mozilla's “intermediate” configuration", f"differs in {', '.join(findings)}" if findings else "compliant",
        "Compliant" in printed or findings == ["certificate_path_validation"],
        "The certificate of this run is self-signed" if findings else "",
    )
    scsv = result["tls_fallback_scsv"].get("supports_fallback_scsv")
    yield Row(
        tool, "TLS_FALLBACK_SCSV", "supported" if scsv else "not supported", scsv is not None,
        "" if scsv else "It protects against a fallback below TLS 1.2, which the gateway refuses; TLS 1.3 has its own protection (RFC 8446 §4.1.3)",
    )


class Driver:
    """A headless Chromium, by the WebDriver protocol."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.process = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + 20
        while time.monotonic() < until:
            try:
                urllib.request.urlopen(self.url + "/status").read()
                break
            except OSError:
                time.sleep(0.1)
        options = {"args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"]}
        wanted = {"acceptInsecureCerts": True, "goog:chromeOptions": options, "timeouts": {"script": 60000}}
        session = self.ask("/session", {"capabilities": {"alwaysMatch": wanted}})
        self.version = session["capabilities"]["browserVersion"]
        self.session = f"/session/{session['sessionId']}"

    def ask(self, path, body):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=90) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()[:500]) from error

    def stop(self):
        urllib.request.urlopen(urllib.request.Request(self.url + self.session, method="DELETE")).read()
        self.process.terminate()
        self.process.wait()


def chromium(application):
    with Gateway({"app": application.url}, tls=True) as gateway:
        driver = Driver()
        try:
            driver.ask(driver.session + "/url", {"url": gateway.url("/public/page", "localhost")})
            checks = driver.ask(driver.session + "/execute/async", {"script": PAGE, "args": []})
        finally:
            driver.stop()
    yield count(f"Chromium {driver.version}", "a page over HTTP/2", checks)
