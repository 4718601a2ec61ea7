// Logs somebody in with Auth.js 5 or next-auth 4, as a browser would, and says which session cookie it got.
//
// {"version": 4 | 5, "signed": bool} → {"cookie", "token", "session", "secret"}. `signed` takes `jwt` of authjs-jwt.js, as the guide has it.

import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { Auth } from "@auth/core";
import Credentials from "@auth/core/providers/credentials";
import { answer } from "./lines.js";

const origin = "https://app.example.com";
process.env.JWT_SECRET = randomBytes(48).toString("base64");
process.env.NEXTAUTH_URL = origin;
const { jwt } = await import("./authjs-jwt.js");
const require = createRequire(import.meta.url);
const NextAuth = require("next-auth").default;
const CredentialsOf4 = require("next-auth/providers/credentials").default;

const account = { id: "u-17", name: "Ann", email: "ann@example.com", roles: ["auditor"] };
const credentials = { credentials: { password: {} }, authorize: ({ password }) => (password === "right" ? account : null) };

function configuration(signed) {
  const maxAge = 8 * 60 * 60;
  return {
    secret: randomBytes(32).toString("hex"),
    session: { strategy: "jwt", maxAge },
    callbacks: {
      jwt: ({ token, user }) => ({ ...token, ...(user && { roles: user.roles }) }),
    },
    ...(signed && { jwt: { ...jwt, maxAge } }),
  };
}

// What a browser keeps of these lines.
const kept = (lines) => Object.fromEntries(lines.map((line) => line.split(";")[0].split("=")));

const versions = {
  5(signed) {
    const config = { ...configuration(signed), basePath: "/auth", trustHost: true, providers: [Credentials(credentials)] };
    return async (method, path, cookies, fields) => {
      const cookie = Object.entries(cookies).map((pair) => pair.join("="));
      const body = fields && new URLSearchParams(fields);
      const response = await Auth(new Request(`${origin}/auth/${path}`, { method, headers: { cookie: cookie.join("; ") }, body }), config);
      return { cookies: kept(response.headers.getSetCookie()), text: await response.text() };
    };
  },

  // Its handler takes the request and response of a Next.js API route.
  4(signed) {
    const options = { ...configuration(signed), providers: [CredentialsOf4(credentials)] };
    return async (method, path, cookies, fields) => {
      const headers = new Map();
      let sent = "";
      const send = (body) => (sent = typeof body === "string" ? body : JSON.stringify(body));
      const response = {
        status: () => response,
        getHeader: (name) => headers.get(name),
        setHeader: (name, value) => headers.set(name, value),
        redirect() {}, end() {}, send, json: send,
      };
      const read = Object.fromEntries(Object.entries(cookies).map(([name, value]) => [name, decodeURIComponent(value)]));
      const request = { method, headers: {}, cookies: read, body: fields ?? {}, query: { nextauth: path.split("/") } };
      await NextAuth(request, response, options);
      return { cookies: kept([headers.get("Set-Cookie") ?? []].flat()), text: sent };
    };
  },
};

answer(async ({ version, signed }) => {
  const ask = versions[version](signed);
  const first = await ask("GET", "csrf", {});
  const { csrfToken } = JSON.parse(first.text);
  const login = await ask("POST", "callback/credentials", first.cookies, { csrfToken, password: "right" });
  const [cookie, token] = Object.entries(login.cookies).find(([name]) => name.endsWith("session-token"));
  const session = await ask("GET", "session", { [cookie]: token });
  return { cookie, token, session: JSON.parse(session.text), secret: process.env.JWT_SECRET };
});
