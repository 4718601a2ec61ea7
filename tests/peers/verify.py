"""Verifies a token with PyJWT and joserfc. Request and answer are those of verify.js."""

import json
import sys
import urllib.request
import warnings

import jwt as pyjwt
from joserfc import jwk
from joserfc import jwt as joserfc

warnings.simplefilter("ignore")


def by_pyjwt(request):
    key = pyjwt.PyJWKClient(request["keys"]).get_signing_key_from_jwt(request["token"])
    expected = {name: request[name] for name in ("issuer", "audience")}
    required = {"require": ["exp", "iat", "iss", "aud", "sub", "jti"]}
    return pyjwt.decode(request["token"], key, algorithms=[request["algorithm"]], options=required, **expected)


def by_joserfc(request):
    with urllib.request.urlopen(request["keys"]) as response:
        keys = jwk.KeySet.import_key_set(json.load(response))
    token = joserfc.decode(request["token"], keys, algorithms=[request["algorithm"]])
    expected = {"iss": request["issuer"], "aud": request["audience"]}
    rules = {name: {"essential": True, "value": value} for name, value in expected.items()}
    joserfc.JWTClaimsRegistry(**rules, exp={"essential": True}).validate(token.claims)
    return token.claims


def outcome(verify, request):
    try:
        return {"subject": verify(request)["sub"]}
    except Exception as error:  # Whatever it is, it is this library's way to refuse.
        return {"refused": type(error).__name__}


for line in sys.stdin:
    asked = json.loads(line)
    by = {"PyJWT": outcome(by_pyjwt, asked), "joserfc": outcome(by_joserfc, asked)}
    print(json.dumps({"by": by}), flush=True)
