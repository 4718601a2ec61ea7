"""A mail server on loopback (aiosmtpd).

{"start": {"certificate": FILE, "key": FILE, "login": [NAME, PASSWORD], "answer": "250 OK"}} begins it, and answers {"port": N}; without a
certificate it speaks without TLS, without a login it asks for none. {"mail": N} waits until N messages were taken, and answers
{"from", "to", "text"} of the last one. {"answer": "451 later"} has it say so to every message from now on.
"""

import asyncio
import json
import queue
import ssl
import sys
import threading

from aiosmtpd.smtp import SMTP, AuthResult


class Inbox:
    def __init__(self):
        self.mails, self.answer = queue.Queue(), "250 OK"

    async def handle_DATA(self, server, session, envelope):
        if self.answer.startswith("250"):
            text = envelope.content.decode("ascii")
            self.mails.put({"from": envelope.mail_from, "to": envelope.rcpt_tos, "text": text})
        return self.answer


def started(inbox, wishes):
    context = None
    if "certificate" in wishes:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(wishes["certificate"], wishes["key"])
    login = wishes.get("login")

    def check(server, session, envelope, mechanism, data):
        return AuthResult(success=[data.login.decode(), data.password.decode()] == login)

    asks = {"authenticator": check, "auth_required": True, "auth_require_tls": False} if login else {}
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    listening = loop.create_server(lambda: SMTP(inbox, loop=loop, **asks), "127.0.0.1", 0, ssl=context)
    return asyncio.run_coroutine_threadsafe(listening, loop).result().sockets[0].getsockname()[1]


inbox, taken, last = Inbox(), 0, None
for line in sys.stdin:
    asked = json.loads(line)
    if "start" in asked:
        answer = {"port": started(inbox, asked["start"])}
    elif "answer" in asked:
        inbox.answer, answer = asked["answer"], {}
    else:
        while taken < asked["mail"]:
            last, taken = inbox.mails.get(timeout=25), taken + 1
        answer = last
    print(json.dumps(answer), flush=True)
