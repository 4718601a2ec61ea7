// Mints what a provider would: claims that are given, with the library that its applications use.
//
// {"as", "alg", "claims", "header"?, "options"?} → {"token", "jwks"?, "secret"?}. The keys are this process's own.

import "reflect-metadata";
import { generateKeyPairSync, randomBytes } from "node:crypto";
import { JwtService } from "@nestjs/jwt";
import * as jose from "jose";
import jsonwebtoken from "jsonwebtoken";
import passportJwt from "passport-jwt";
import { answer, now } from "./lines.js";

const secret = randomBytes(48).toString("base64");
const pairs = {
  RS256: generateKeyPairSync("rsa", { modulusLength: 2048 }),
  ES256: generateKeyPairSync("ec", { namedCurve: "P-256" }),
};

// As a provider publishes it, with the key for encryption that Keycloak has beside it.
async function jwks(alg) {
  const signs = { ...(await jose.exportJWK(pairs[alg].publicKey)), kid: "k1", use: "sig", alg };
  const encrypts = { ...(await jose.exportJWK(pairs.RS256.publicKey)), kid: "e1", use: "enc", alg: "RSA-OAEP" };
  return { keys: [encrypts, signs] };
}

const mints = {
  async jose({ alg, claims, header }) {
    const times = { iat: now(), exp: now() + 3600 };
    const key = alg === "HS256" ? new TextEncoder().encode(secret) : pairs[alg].privateKey;
    const kid = alg === "HS256" ? {} : { kid: "k1" };
    const token = await new jose.SignJWT({ ...times, ...claims }).setProtectedHeader({ alg, typ: "JWT", ...kid, ...header }).sign(key);
    return alg === "HS256" ? { token, secret } : { token, jwks: await jwks(alg) };
  },

  async jsonwebtoken({ claims, options }) {
    return { token: jsonwebtoken.sign(claims, secret, options), secret };
  },

  // As the authentication chapter of Nest's documentation does it: a service of a module that was given the secret.
  async nestjs({ claims, options }) {
    const service = new JwtService({ secret, signOptions: options });
    return { token: await service.signAsync(claims), secret };
  },

  // What an application with passport-jwt makes of a request: the payload, or why it refuses.
  async passport({ authorization }) {
    const strategy = new passportJwt.Strategy(
      { jwtFromRequest: passportJwt.ExtractJwt.fromAuthHeaderAsBearerToken(), secretOrKey: secret },
      (payload, done) => done(null, payload),
    );
    return new Promise((resolve) => {
      strategy.success = (payload) => resolve({ payload });
      strategy.fail = (cause) => resolve({ refused: String(cause?.message ?? cause) });
      strategy.error = (cause) => resolve({ refused: String(cause) });
      strategy.authenticate({ headers: { ...(authorization && { authorization }) } });
    });
  },
};

answer((request) => mints[request.as](request));
