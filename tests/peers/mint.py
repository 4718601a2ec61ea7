"""Mints tokens with PyJWT and joserfc, with keys of their own.

One request, a line on standard input; one answer, a line on standard output; both JSON:
{"issuers": {"hmac", "jwks", "pem"}, "claims": {…}} → {"secret", "jwks", "pems": {…}, "tokens": [{"library", "what", "token"}]}.
`what` is an algorithm where the token is good, and otherwise what is wrong with it.
"""

import json
import secrets
import sys
import time
import warnings

import jwt as pyjwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from joserfc import jwe, jwk
from joserfc import jwt as joserfc

# RFC 9864 deprecates the name EdDSA: libraries warn, and issuers go on using it.
warnings.simplefilter("ignore")

PRIVATE = {
    "rsa": rsa.generate_private_key(65537, 2048),
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
}
SECRET = secrets.token_urlsafe(64)

KEY_OF = {
    **{algorithm: "rsa" for algorithm in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")},
    "ES256": "p256",
    "ES384": "p384",
    "EdDSA": "ed25519",
}


def private_pem(key):
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def public_pem(key):
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()


JOSE = {
    "rsa": jwk.RSAKey.import_key(private_pem(PRIVATE["rsa"]), {"kid": "rsa", "use": "sig"}),
    "p256": jwk.ECKey.import_key(private_pem(PRIVATE["p256"]), {"kid": "p256", "use": "sig"}),
    "p384": jwk.ECKey.import_key(private_pem(PRIVATE["p384"]), {"kid": "p384", "use": "sig"}),
    "ed25519": jwk.OKPKey.import_key(private_pem(PRIVATE["ed25519"]), {"kid": "ed25519", "use": "sig"}),
}


def with_pyjwt(claims, algorithm, kid=None, key=None, header=None):
    key = key or (PRIVATE[KEY_OF[algorithm]] if algorithm in KEY_OF else SECRET)
    return pyjwt.encode(claims, key, algorithm=algorithm, headers={**({"kid": kid} if kid else {}), **(header or {})})


def with_joserfc(claims, algorithm, kid=None, key=None, header=None):
    key = key or (JOSE[KEY_OF[algorithm]] if algorithm in KEY_OF else jwk.OctKey.import_key(SECRET))
    all_of_header = {"alg": algorithm, **({"kid": kid} if kid else {}), **(header or {})}
    return joserfc.encode(all_of_header, claims, key, algorithms=[algorithm])


def good(mint, issuers, claims):
    for algorithm in ("HS256", "HS384", "HS512"):
        yield algorithm, mint({**claims, "iss": issuers["hmac"]}, algorithm)
    for algorithm, kid in KEY_OF.items():
        yield algorithm, mint({**claims, "iss": issuers["jwks"]}, algorithm, kid=kid)
        yield algorithm, mint({**claims, "iss": issuers["pem"]}, algorithm)


def bad(mint, foreign_key, issuers, claims):
    now = int(time.time())
    claims = {**claims, "iss": issuers["jwks"]}
    yield "another's key", mint(claims, "ES256", kid="p256", key=foreign_key)
    yield "an unknown kid", mint(claims, "ES256", kid="p257")
    yield "expired", mint({**claims, "iat": now - 3600, "exp": now - 60}, "RS256", kid="rsa")
    yield "not yet valid", mint({**claims, "nbf": now + 60}, "RS256", kid="rsa")
    yield "another audience", mint({**claims, "aud": "payroll"}, "EdDSA", kid="ed25519")
    yield "another issuer", mint({**claims, "iss": "https://evil.test"}, "EdDSA", kid="ed25519")
    yield "no exp", mint({name: value for name, value in claims.items() if name != "exp"}, "ES384", kid="p384")
    yield "a longer life than allowed", mint({**claims, "exp": now + 90 * 86400}, "PS256", kid="rsa")


def main():
    request = json.loads(sys.stdin.readline())
    issuers, claims = request["issuers"], request["claims"]
    claims = {**claims, "iat": int(time.time()), "exp": int(time.time()) + 600}
    of_jwks = {**claims, "iss": issuers["jwks"]}
    foreign = ec.generate_private_key(ec.SECP256R1())
    foreign_jose = jwk.ECKey.import_key(private_pem(foreign))
    encrypting, algorithms = jwk.RSAKey.import_key(public_pem(PRIVATE["rsa"])), ["RSA-OAEP-256", "A256GCM"]
    encryption = {"alg": algorithms[0], "enc": algorithms[1], "kid": "rsa"}

    pyjwt_tokens = [
        *good(with_pyjwt, issuers, claims),
        *bad(with_pyjwt, foreign, issuers, claims),
        ("alg none", pyjwt.encode(of_jwks, None, algorithm="none")),
        ("crit", with_pyjwt(of_jwks, "ES256", kid="p256", header={"crit": ["exp"], "exp": 1})),
        ("ES512", pyjwt.encode(of_jwks, ec.generate_private_key(ec.SECP521R1()), algorithm="ES512")),
        ("ES256K", pyjwt.encode(of_jwks, ec.generate_private_key(ec.SECP256K1()), algorithm="ES256K")),
    ]
    joserfc_tokens = [
        *good(with_joserfc, issuers, claims),
        *bad(with_joserfc, foreign_jose, issuers, claims),
        ("encrypted", jwe.encrypt_compact(encryption, json.dumps(of_jwks), encrypting, algorithms=algorithms)),
        ("Ed25519", with_joserfc(of_jwks, "Ed25519", kid="ed25519", key=JOSE["ed25519"])),
    ]
    made = {
        "secret": SECRET,
        "jwks": {"keys": [key.as_dict(private=False) for key in JOSE.values()]},
        "pems": {name: public_pem(key) for name, key in PRIVATE.items()},
        "tokens": [
            {"library": library, "what": what, "token": token}
            for library, tokens in (("PyJWT", pyjwt_tokens), ("joserfc", joserfc_tokens))
            for what, token in tokens
        ],
    }
    print(json.dumps(made))


main()
