// Another OpenID provider (oauth2-mock-server), whose tokens can be forged. It ends with its standard input.
//
// {"do": "serve"}          → {"issuer"}
// {"do": "say", "claims"}  → what ID tokens say in addition
// {"do": "forge", "how"}   → how the next ID tokens are wrong: "none", "foreign key", "another client", "another party", "nonce", "expired",
//                            "access token", "no token"; "" as it should be
// What browsers do is in browser.js.

import { generateKeyPairSync, sign as signBytes } from "node:crypto";
import * as jose from "jose";
import { OAuth2Server } from "oauth2-mock-server";
import { browser } from "./browser.js";
import { answer } from "./lines.js";

const server = new OAuth2Server();
await server.issuer.keys.generate("RS256");
await server.start(0, "127.0.0.1");
const foreign = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey;
let claims = {};
let how = "";

const forgeries = {
  "another client": { aud: "somebody else" },
  "another party": { azp: "somebody else" },
  nonce: { nonce: "of another login" },
  expired: { exp: 1000 },
  "access token": { at_hash: "AAAAAAAAAAAAAAAAAAAAAA" },
};

server.service.on("beforeTokenSigning", (token, request) => {
  if (request.body?.code && token.payload.aud) Object.assign(token.payload, claims, forgeries[how]);
});

server.service.on("beforeResponse", (response) => {
  if (how === "no token") delete response.body.id_token;
  if (!["none", "foreign key"].includes(how)) return;
  const [header, payload] = response.body.id_token.split(".");
  if (how === "none") {
    const none = Buffer.from(JSON.stringify({ alg: "none", typ: "JWT" })).toString("base64url");
    response.body.id_token = `${none}.${payload}.`;
  } else {
    const signature = jose.base64url.encode(sign(`${header}.${payload}`));
    response.body.id_token = `${header}.${payload}.${signature}`;
  }
});

const sign = (input) => signBytes("sha256", Buffer.from(input), foreign);

const verbs = {
  ...browser,
  serve: () => ({ issuer: server.issuer.url }),
  say: ({ claims: said }) => {
    claims = said;
    return {};
  },
  forge: ({ how: next }) => {
    how = next;
    return {};
  },
};

answer((request) => verbs[request.do](request));
