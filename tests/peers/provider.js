// A certified OpenID provider (oidc-provider) on loopback that people log in at, and their browsers. It ends with its standard
// input. Nobody is asked anything: who has a login in progress is `person`.
//
// {"do": "serve", "client"?, "large"?, "assertion"?} → {"issuer", "key"}: from now on. `client`: more of its metadata; `large`: bytes in
//                                                  each ID token; `assertion`: the client proves itself with `key`, in PEM
// {"do": "person", "account", "claims", "acr"?} → who logs in from now on, and what is said about them; acr: how they prove it
// {"do": "forget", "account"}                   → the account is disabled: refresh tokens are no longer valid
// What its server does is in server.js, and what browsers do in browser.js.
// {"do": "logout", "jar"}                       → {"told"}: logs out at the provider, in this browser; how many clients were told

import { generateKeyPairSync, randomBytes } from "node:crypto";
import * as jose from "jose";
import { at, browser, fetchOne, jars } from "./browser.js";
import { answer } from "./lines.js";
import { Memory } from "./memory.js";
import { server } from "./server.js";

console.warn = () => {};
console.info = () => {};
const { Provider, interactionPolicy } = await import("oidc-provider");
const { Check, base } = interactionPolicy;

const random = () => randomBytes(32).toString("base64url");
const people = new Map();
let person;
let acr;
let issuer;
let told = 0;
let made;

const key = { ...(await jose.exportJWK(generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey)), kid: "1", alg: "RS256", use: "sig" };

// Who is asked to log in again: as the specification says, and where an `acr` is asked for that the session does not have.
const policy = base();
policy.get("login").checks.add(
  new Check("acr", "another acr was asked for", (context) => {
    const wanted = context.oidc.params.acr_values?.split(" ");
    return !acr && wanted && !wanted.includes(context.oidc.session.acr) ? Check.REQUEST_PROMPT : Check.NO_NEED_TO_PROMPT;
  }),
);

function provider({ client, large = 0, claimsInToken = large > 0 }) {
  const made = new Provider(issuer, {
    adapter: Memory,
    jwks: { keys: [key] },
    cookies: { keys: [random()] },
    clients: [
      {
        client_id: "portcullis",
        client_secret: "secret of the client: 100 %",
        grant_types: ["authorization_code", "refresh_token"],
        redirect_uris: ["app.test", "app.localhost"].flatMap((host) =>
          ["corp", "company", "other"].map((name) => `http://${host}/auth/login/${name}/callback`),
        ),
        post_logout_redirect_uris: ["http://app.test/auth/logout", "http://app.localhost/auth/logout"],
        backchannel_logout_uri: "http://app.test/auth/login/corp/backchannel-logout",
        backchannel_logout_session_required: true,
        ...client,
      },
    ],
    acrValues: ["pwd", "phr"],
    findAccount: (_context, id) =>
      people.has(id)
        ? {
            accountId: id,
            claims: (use) => ({ sub: id, ...(use === "id_token" && large && { filling: "x".repeat(large) }), ...people.get(id) }),
          }
        : undefined,
    claims: {
      openid: ["sub", "groups", "hd", "_claim_names", "filling"],
      email: ["email", "email_verified"],
      profile: ["name"],
      acr: null,
      sid: null,
      auth_time: null,
    },
    conformIdTokenClaims: !claimsInToken,
    issueRefreshToken: () => true,
    rotateRefreshToken: true,
    interactions: { policy, url: (_context, interaction) => `/interaction/${interaction.uid}` },
    loadExistingGrant: async (context) => {
      const known = context.oidc.session.grantIdFor(context.oidc.client.clientId);
      // A refresh token that came twice has revoked it.
      const found = known && (await context.oidc.provider.Grant.find(known));
      if (found) return found;
      const grant = new context.oidc.provider.Grant({ clientId: context.oidc.client.clientId, accountId: context.oidc.session.accountId });
      grant.addOIDCScope("openid email profile offline_access");
      await grant.save();
      return grant;
    },
    pkce: { required: () => true },
    features: { devInteractions: { enabled: false }, backchannelLogout: { enabled: true } },
    fetch: (url, { dispatcher: _, ...options }) => fetch(String(url).replace("http://app.test", `http://${at.gateway}`), options),
    renderError: (context, out) => {
      context.body = JSON.stringify(out);
    },
  });
  made.on("backchannel.success", () => (told += 1));
  made.on("backchannel.error", (_context, error) => console.error(error));
  return made;
}

const { listen, verbs: ofServer } = server(async (request, response, pathname) => {
  if (pathname.startsWith("/interaction/")) {
    const asked = await made.interactionDetails(request, response);
    const login = { accountId: person, acr: acr ?? asked.params.acr_values?.split(" ")[0] ?? "pwd", remember: true };
    return made.interactionFinished(request, response, { login }, { mergeWithLastSubmission: false });
  }
  return made.callback()(request, response);
});

const verbs = {
  ...browser,
  ...ofServer,

  serve: async (options) => {
    issuer = await listen();
    let pem;
    if (options.assertion) {
      const pair = generateKeyPairSync("ec", { namedCurve: "P-256" });
      const jwk = { ...(await jose.exportJWK(pair.publicKey)), kid: "ours", use: "sig", alg: "ES256" };
      options.client = { client_secret: undefined, token_endpoint_auth_method: "private_key_jwt", token_endpoint_auth_signing_alg: "ES256", jwks: { keys: [jwk] } };
      pem = pair.privateKey.export({ type: "pkcs8", format: "pem" });
    }
    made = provider(options);
    return { issuer, key: pem };
  },

  person: ({ account, claims, acr: how }) => {
    person = account;
    acr = how;
    people.set(account, claims);
    return {};
  },

  forget: ({ account }) => {
    people.delete(account);
    return {};
  },

  logout: async ({ jar: name }) => {
    told = 0;
    const jar = jars.get(name);
    const page = await fetchOne(jar, `${issuer}/session/end`);
    const action = /<form[^>]* action="([^"]+)"/.exec(page.body)?.[1];
    const hidden = Object.fromEntries([...page.body.matchAll(/name="(xsrf)" value="([^"]+)"/g)].map(([, ...pair]) => pair));
    const done = await fetchOne(jar, new URL(action, issuer).href, { ...hidden, logout: "yes" });
    return { told, status: done.status };
  },
};

answer((request) => verbs[request.do](request));
