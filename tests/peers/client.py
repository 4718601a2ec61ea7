"""A client that openapi-python-client makes of our description, in use.

{"description": FILE, "address": URL, "email", "password"} → {"wrong", "email", "is_successor", "after"}: why a wrong password is
refused, who the account says it is, whether a refresh gives another token, and why the session refreshes no more after a logout.
"""

import importlib
import json
import pathlib
import subprocess
import sys
import tempfile


def generate(description, folder):
    """Makes the package. It is neither formatted nor linted: nobody reads it."""
    config = folder / "config.yaml"
    config.write_text("post_hooks: []\n")
    subprocess.run(
        [sys.executable, "-m", "openapi_python_client", "generate", "--path", description, "--meta", "none",
         "--output-path", str(folder / "portcullis_client"), "--config", str(config)],
        check=True, stdout=sys.stderr,
    )
    sys.path.insert(0, str(folder))


def use(address, email, password):
    client = importlib.import_module("portcullis_client")
    models = importlib.import_module("portcullis_client.models")

    def call(name, **arguments):
        return importlib.import_module(f"portcullis_client.api.accounts.{name}").sync(**arguments)

    stranger = client.Client(base_url=address)
    wrong = call("post_login", client=stranger, body=models.Login(email=email, password="wrong"))
    first = call("post_login", client=stranger, body=models.Login(email=email, password=password))
    second = call("post_refresh", client=stranger, body=models.Refresh(refresh_token=first.refresh_token))
    caller = client.AuthenticatedClient(base_url=address, token=second.access_token)
    me = call("get_me", client=caller)
    call("post_logout", client=caller, body=models.Logout())
    after = call("post_refresh", client=stranger, body=models.Refresh(refresh_token=second.refresh_token))
    return {
        "wrong": wrong.reason.value,
        "email": me.email,
        "is_successor": first.refresh_token != second.refresh_token,
        "after": after.reason.value,
    }


for line in sys.stdin:
    asked = json.loads(line)
    with tempfile.TemporaryDirectory() as folder:
        generate(asked["description"], pathlib.Path(folder))
        print(json.dumps(use(asked["address"], asked["email"], asked["password"])), flush=True)
