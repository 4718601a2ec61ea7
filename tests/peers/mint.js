// Mints tokens with jose and jsonwebtoken, with keys of their own. Request and answer are those of mint.py.

import { generateKeyPairSync, randomBytes } from "node:crypto";
import * as jose from "jose";
import jsonwebtoken from "jsonwebtoken";
import { answer, now } from "./lines.js";

const pairs = {
  rsa: generateKeyPairSync("rsa", { modulusLength: 2048 }),
  p256: generateKeyPairSync("ec", { namedCurve: "P-256" }),
  p384: generateKeyPairSync("ec", { namedCurve: "P-384" }),
  ed25519: generateKeyPairSync("ed25519"),
};
const secret = randomBytes(64).toString("base64url");
const bytes = (text) => new TextEncoder().encode(text);

const keyOf = {
  RS256: "rsa", RS384: "rsa", RS512: "rsa", PS256: "rsa", PS384: "rsa", PS512: "rsa", ES256: "p256", ES384: "p384", EdDSA: "ed25519",
};

function withJose(claims, alg, { kid, key, header = {} } = {}) {
  const signing = key ?? (keyOf[alg] ? pairs[keyOf[alg]].privateKey : bytes(secret));
  return new jose.SignJWT(claims).setProtectedHeader({ alg, typ: "JWT", ...(kid && { kid }), ...header }).sign(signing);
}

async function withJsonwebtoken(claims, alg, { kid, key, header = {} } = {}) {
  const signing = key ?? (keyOf[alg] ? pairs[keyOf[alg]].privateKey : secret);
  return jsonwebtoken.sign(claims, signing, { algorithm: alg, ...(kid && { keyid: kid }), header: { alg, ...header } });
}

async function good(mint, algorithms, issuers, claims) {
  const made = [];
  for (const alg of algorithms) {
    if (alg.startsWith("HS")) {
      made.push([alg, await mint({ ...claims, iss: issuers.hmac }, alg)]);
    } else {
      made.push([alg, await mint({ ...claims, iss: issuers.jwks }, alg, { kid: keyOf[alg] })]);
      made.push([alg, await mint({ ...claims, iss: issuers.pem }, alg)]);
    }
  }
  return made;
}

async function bad(mint, claims) {
  const { exp: _, ...endless } = claims;
  const foreign = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;
  return [
    ["another's key", await mint(claims, "ES256", { kid: "p256", key: foreign })],
    ["an unknown kid", await mint(claims, "ES256", { kid: "p257" })],
    ["expired", await mint({ ...claims, iat: now() - 3600, exp: now() - 60 }, "RS256", { kid: "rsa" })],
    ["not yet valid", await mint({ ...claims, nbf: now() + 60 }, "RS256", { kid: "rsa" })],
    ["another audience", await mint({ ...claims, aud: "payroll" }, "ES256", { kid: "p256" })],
    ["another issuer", await mint({ ...claims, iss: "https://evil.test" }, "ES256", { kid: "p256" })],
    ["no exp", await mint(endless, "ES384", { kid: "p384" })],
    ["a longer life than allowed", await mint({ ...claims, exp: now() + 90 * 86400 }, "PS256", { kid: "rsa" })],
  ];
}

answer(async ({ issuers, claims: given }) => {
  const claims = { ...given, iat: now(), exp: now() + 600 };
  const ofJwks = { ...claims, iss: issuers.jwks };
  const pem = (name) => pairs[name].publicKey.export({ type: "spki", format: "pem" });
  const p521 = generateKeyPairSync("ec", { namedCurve: "P-521" }).privateKey;
  const withJoseToo = [
    ["alg none", new jose.UnsecuredJWT(ofJwks).encode()],
    ["crit", await new jose.CompactSign(bytes(JSON.stringify(ofJwks)))
      .setProtectedHeader({ alg: "ES256", kid: "p256", crit: ["b64"], b64: true })
      .sign(pairs.p256.privateKey)],
    ["encrypted", await new jose.EncryptJWT(ofJwks)
      .setProtectedHeader({ alg: "RSA-OAEP-256", enc: "A256GCM", kid: "rsa" })
      .encrypt(pairs.rsa.publicKey)],
    ["a public key as a secret", await withJose(ofJwks, "HS256", { kid: "rsa", key: bytes(pem("rsa")) })],
    ["ES512", await withJose(ofJwks, "ES512", { key: p521 })],
    ["Ed25519", await withJose(ofJwks, "Ed25519", { kid: "ed25519", key: pairs.ed25519.privateKey })],
  ];
  const withJsonwebtokenToo = [
    ["alg none", jsonwebtoken.sign(ofJwks, "", { algorithm: "none" })],
    ["crit", await withJsonwebtoken(ofJwks, "ES256", { kid: "p256", header: { crit: ["exp"], exp: 1 } })],
  ];
  const hmacs = ["HS256", "HS384", "HS512"];
  const notEdDsa = Object.keys(keyOf).filter((alg) => alg !== "EdDSA");
  const tokens = [
    ["jose", await good(withJose, [...hmacs, ...Object.keys(keyOf)], issuers, claims)],
    ["jose", await bad(withJose, ofJwks)],
    ["jose", withJoseToo],
    ["jsonwebtoken", await good(withJsonwebtoken, [...hmacs, ...notEdDsa], issuers, claims)],
    ["jsonwebtoken", await bad(withJsonwebtoken, ofJwks)],
    ["jsonwebtoken", withJsonwebtokenToo],
  ];
  const keys = await Promise.all(
    Object.entries(pairs).map(async ([kid, { publicKey }]) => ({ ...(await jose.exportJWK(publicKey)), kid, use: "sig" })),
  );
  return {
    secret,
    jwks: { keys },
    pems: Object.fromEntries(Object.keys(pairs).map((name) => [name, pem(name)])),
    tokens: tokens.flatMap(([library, made]) => made.map(([what, token]) => ({ library, what, token }))),
  };
});
