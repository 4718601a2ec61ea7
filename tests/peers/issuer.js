// A certified OpenID provider (oidc-provider) on loopback. It ends with its standard input.
//
// {"do": "key", "kid", "alg"}                → {"key"}: a new private key, as a JWK
// {"do": "serve", "port"?, "keys", "logout"?} → {"issuer"}: from now on; the first key signs, all are published. `logout` is
//                                               {"uri", "session"}: where logouts are told, and whether with the session's name
// {"do": "grant", "resource"?}               → {"access_token", …}: to the client itself
// {"do": "login", "account", "resource"?}    → {"access_token", "id_token", …}: by code and PKCE, through the login and consent pages
// {"do": "logout", "id_token"}               → {"told"}: in the browser of that login, and how many clients were told
//
// Without `resource` access tokens are opaque, as they are with many providers.

import { createHash, generateKeyPairSync, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import * as jose from "jose";
import { answer } from "./lines.js";

// It warns about what is fine here: it is on loopback, and forgets everything when it ends.
console.warn = () => {};
console.info = () => {};
const { Provider } = await import("oidc-provider");

const redirect = "http://127.0.0.1/callback";
const random = () => randomBytes(32).toString("base64url");
const client = { id: "reports-web", secret: random() };
const browsers = new Map();
let issuer;
let told = 0;

function provider(keys, logout) {
  const made = new Provider(issuer, {
    jwks: { keys },
    cookies: { keys: [random()] },
    clients: [
      {
        client_id: client.id,
        client_secret: client.secret,
        application_type: "native",
        grant_types: ["authorization_code", "client_credentials"],
        redirect_uris: [redirect],
        id_token_signed_response_alg: keys[0].alg,
        ...(logout && { backchannel_logout_uri: logout.uri, backchannel_logout_session_required: logout.session }),
      },
    ],
    findAccount: (_context, id) => ({
      accountId: id,
      claims: () => ({ sub: id, email: `${id}@example.com`, email_verified: true, name: id }),
    }),
    claims: { openid: ["sub"], email: ["email", "email_verified"], profile: ["name"] },
    conformIdTokenClaims: false,
    // Its own way to fetch refuses loopback, where the gateway is.
    fetch: (url, { dispatcher: _, ...options }) => fetch(url, options),
    extraTokenClaims: (context, token) => ({
      roles: token.kind === "AccessToken" ? ["auditor"] : ["service"],
      ...(logout?.session && { sid: context.oidc.entities.AuthorizationCode?.sid }),
    }),
    features: {
      backchannelLogout: { enabled: true },
      clientCredentials: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_context, resource) => ({
          scope: "reports:read",
          audience: resource,
          accessTokenFormat: "jwt",
          accessTokenTTL: 600,
          jwt: { sign: { alg: keys[0].alg } },
        }),
        useGrantedResource: () => true,
      },
    },
  });
  made.on("backchannel.success", () => (told += 1));
  made.on("backchannel.error", (_context, error) => console.error(error));
  return made;
}

async function token(parameters) {
  const response = await fetch(`${issuer}/token`, {
    method: "POST",
    headers: { authorization: `Basic ${btoa(`${client.id}:${client.secret}`)}` },
    body: new URLSearchParams(parameters),
  });
  const body = await response.json();
  if (!response.ok) throw new Error(`no token: ${JSON.stringify(body)}`);
  return body;
}

// A browser: follows redirects until they lead to the application, fills in the form of each page on the way.
async function browse(jar, url, fields) {
  let request = { url, method: "GET" };
  for (let steps = 0; steps < 20; steps += 1) {
    const response = await fetch(request.url, {
      method: request.method,
      body: request.body,
      headers: { cookie: [...jar].map(([name, value]) => `${name}=${value}`).join("; ") },
      redirect: "manual",
    });
    for (const line of response.headers.getSetCookie()) {
      const [name, value] = line.split(";")[0].split("=");
      if (value) jar.set(name, value);
      else jar.delete(name);
    }
    const location = response.headers.get("location");
    if (location) {
      const next = new URL(location, request.url);
      if (next.href.startsWith(redirect)) return { answer: next.searchParams };
      request = { url: next.href, method: "GET" };
    } else {
      const page = await response.text();
      const action = /<form[^>]* action="([^"]+)"/.exec(page)?.[1];
      if (!action) return { status: response.status, page };
      const hidden = Object.fromEntries([...page.matchAll(/name="(prompt|xsrf)" value="([^"]+)"/g)].map(([, ...pair]) => pair));
      request = { url: new URL(action, request.url).href, method: "POST", body: new URLSearchParams({ ...hidden, ...fields }) };
    }
  }
  throw new Error("the login goes round in circles");
}

const server = createServer();
const verbs = {
  key: async ({ kid, alg }) => {
    const made = alg === "RS256" ? ["rsa", { modulusLength: 2048 }] : ["ec", { namedCurve: "P-256" }];
    return { key: { ...(await jose.exportJWK(generateKeyPairSync(...made).privateKey)), kid, alg, use: "sig" } };
  },

  serve: async ({ port = 0, keys, logout }) => {
    if (!server.listening) await new Promise((resolve) => server.listen(port, "127.0.0.1", resolve));
    issuer = `http://127.0.0.1:${server.address().port}`;
    server.removeAllListeners("request");
    server.on("request", provider(keys, logout).callback());
    return { issuer };
  },

  grant: ({ resource }) =>
    token({ grant_type: "client_credentials", ...(resource && { resource, scope: "reports:read" }) }),

  login: async ({ account, resource }) => {
    const verifier = random();
    const parameters = new URLSearchParams({
      response_type: "code",
      client_id: client.id,
      redirect_uri: redirect,
      scope: `openid email${resource ? " reports:read" : ""}`,
      code_challenge: createHash("sha256").update(verifier).digest("base64url"),
      code_challenge_method: "S256",
      ...(resource && { resource }),
    });
    const jar = new Map();
    const { answer: answered, page } = await browse(jar, `${issuer}/auth?${parameters}`, { login: account, password: "any" });
    const code = answered?.get("code");
    if (!code) throw new Error(`no code: ${answered ?? page}`);
    const tokens = await token({ grant_type: "authorization_code", code, redirect_uri: redirect, code_verifier: verifier });
    browsers.set(tokens.id_token, jar);
    return tokens;
  },

  logout: async ({ id_token: hint }) => {
    told = 0;
    const { status, page } = await browse(browsers.get(hint), `${issuer}/session/end?id_token_hint=${hint}`, { logout: "yes" });
    if (status !== 200) throw new Error(`no logout: ${status} ${page}`);
    return { told };
  },
};

answer((request) => verbs[request.do](request));
