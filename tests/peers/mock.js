// Another OpenID provider (oauth2-mock-server), whose tokens can be forged. It ends with its standard input. It does what provider.js
// does, as far as both can; each refresh token works once, and one that comes again ends its session.
//
// {"do": "serve", "large"?, "silent"?, "claims"?} → {"issuer"}: from now on. `large`: bytes in each ID token; `silent`: there is no
//                            userinfo, and no ID token comes with a refreshed access token; `claims`: "userinfo": ID tokens have none
// {"do": "person", "account", "claims"}  → who logs in from now on, and what is said about them
// {"do": "forget", "account"}            → the account is disabled: refresh tokens are no longer valid
// {"do": "forge", "how"}   → how the next ID tokens are wrong: "none", "foreign key", "another client", "another party", "nonce", "expired",
//                            "access token", "no token"; "" as it should be
// {"do": "logout"}         → {"told"}: ends the session that began last, and tells the gateway
// What its server does is in server.js, and what browsers do in browser.js.

import { generateKeyPairSync, randomUUID, sign as signBytes } from "node:crypto";
import * as jose from "jose";
import { OAuth2Issuer, OAuth2Service } from "oauth2-mock-server";
import { at, browser } from "./browser.js";
import { answer, now } from "./lines.js";
import { server } from "./server.js";

const issuer = new OAuth2Issuer();
await issuer.keys.generate("RS256");
const service = new OAuth2Service(issuer);
const foreign = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey;
const people = new Map();
// Sessions by the codes, refresh tokens and access tokens that belong to them.
const codes = new Map();
const refreshes = new Map();
const used = new Map();
let person;
let last;
let how = "";
let options = {};

const forgeries = {
  "another client": { aud: "somebody else" },
  "another party": { azp: "somebody else" },
  nonce: { nonce: "of another login" },
  expired: { exp: 1000 },
  "access token": { at_hash: "AAAAAAAAAAAAAAAAAAAAAA" },
};

service.on("beforeAuthorizeRedirect", ({ url }) => {
  last = { account: person, sid: randomUUID(), auth_time: now() };
  codes.set(url.searchParams.get("code"), last);
});

const sessionOf = ({ body }) => codes.get(body?.code) ?? refreshes.get(body?.refresh_token);

service.on("beforeTokenSigning", ({ payload }, request) => {
  const session = sessionOf(request);
  if (!session) return;
  payload.sub = session.account;
  if (!payload.aud) return;
  const said = options.claims === "userinfo" ? {} : people.get(session.account);
  const filling = options.large ? { filling: "x".repeat(options.large) } : {};
  Object.assign(payload, { sid: session.sid, auth_time: session.auth_time }, said, filling, request.body.code ? forgeries[how] : {});
});

service.on("beforeResponse", (response, request) => {
  const { code, refresh_token: given } = request.body;
  const session = sessionOf(request);
  if (given) {
    if (used.has(given)) used.get(given).over = true;
    if (!session || session.over || !people.has(session.account)) {
      response.statusCode = 400;
      response.body = { error: "invalid_grant" };
      return;
    }
    refreshes.delete(given);
    used.set(given, session);
    if (options.silent) delete response.body.id_token;
  }
  if (session) refreshes.set(response.body.refresh_token, session);
  if (!code) return;
  if (how === "no token") delete response.body.id_token;
  if (!["none", "foreign key"].includes(how)) return;
  const [header, payload] = response.body.id_token.split(".");
  if (how === "none") {
    const none = Buffer.from(JSON.stringify({ alg: "none", typ: "JWT" })).toString("base64url");
    response.body.id_token = `${none}.${payload}.`;
  } else {
    const signature = jose.base64url.encode(signBytes("sha256", Buffer.from(`${header}.${payload}`), foreign));
    response.body.id_token = `${header}.${payload}.${signature}`;
  }
});

service.on("beforeUserinfo", (response, request) => {
  const { sub } = jose.decodeJwt(request.headers.authorization.split(" ")[1]);
  response.body = { sub, ...people.get(sub) };
});

const { listen, verbs: ofServer } = server(async (request, response, pathname) => {
  if (options.silent && pathname === "/.well-known/openid-configuration") {
    const end = response.end.bind(response);
    response.end = (body) => {
      const { userinfo_endpoint: _, ...rest } = JSON.parse(body);
      const text = JSON.stringify(rest);
      response.setHeader("content-length", Buffer.byteLength(text));
      return end(text);
    };
  }
  return service.requestHandler(request, response);
});

const verbs = {
  ...browser,
  ...ofServer,

  serve: async (asked) => {
    options = asked;
    issuer.url = await listen();
    return { issuer: issuer.url };
  },

  person: ({ account, claims }) => {
    person = account;
    people.set(account, claims);
    return {};
  },

  forget: ({ account }) => {
    people.delete(account);
    return {};
  },

  forge: ({ how: next }) => {
    how = next;
    return {};
  },

  logout: async () => {
    last.over = true;
    const [{ kid, alg, ...jwk }] = issuer.keys.toJSON(true);
    const claims = { events: { "http://schemas.openid.net/event/backchannel-logout": {} }, sid: last.sid, sub: last.account };
    const token = await new jose.SignJWT(claims)
      .setProtectedHeader({ alg, kid, typ: "logout+jwt" })
      .setIssuer(issuer.url)
      .setAudience("portcullis")
      .setIssuedAt()
      .setExpirationTime("2m")
      .setJti(randomUUID())
      .sign(await jose.importJWK(jwk, alg));
    const told = await fetch(`http://${at.gateway}/auth/login/corp/backchannel-logout`, { method: "POST", body: new URLSearchParams({ logout_token: token }) });
    return { told: told.status === 200 ? 1 : 0, status: told.status };
  },
};

answer((request) => verbs[request.do](request));
