// Logs somebody in with Auth.js, as a browser would, and says which session cookie it got.
//
// {"signed": bool} → {"cookie", "token", "session", "secret", "v4"}. `signed` takes `jwt` of authjs-jwt.js, as the guide has it; `v4` is
// what next-auth 4 makes of the same claims when nobody tells it otherwise.

import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";
import { Auth } from "@auth/core";
import Credentials from "@auth/core/providers/credentials";
import { answer } from "./lines.js";

process.env.JWT_SECRET = randomBytes(48).toString("base64");
const { jwt } = await import("./authjs-jwt.js");
const { encode: encodeOfV4 } = createRequire(import.meta.url)("next-auth/jwt");

const origin = "https://app.example.com";
const account = { id: "u-17", name: "Ann", email: "ann@example.com", roles: ["auditor"] };

const configuration = {
  basePath: "/auth",
  trustHost: true,
  secret: randomBytes(32).toString("hex"),
  session: { strategy: "jwt", maxAge: 8 * 60 * 60 },
  providers: [Credentials({ credentials: { password: {} }, authorize: ({ password }) => (password === "right" ? account : null) })],
  callbacks: {
    jwt: ({ token, user }) => ({ ...token, ...(user && { roles: user.roles }) }),
  },
};

const cookies = (response) => response.headers.getSetCookie().map((line) => line.split(";")[0]);

async function login(config) {
  const first = await Auth(new Request(`${origin}/auth/csrf`), config);
  const { csrfToken } = await first.json();
  const response = await Auth(
    new Request(`${origin}/auth/callback/credentials`, {
      method: "POST",
      headers: { cookie: cookies(first).join("; "), "content-type": "application/x-www-form-urlencoded" },
      body: new URLSearchParams({ csrfToken, password: "right" }),
    }),
    config,
  );
  const [cookie, token] = cookies(response)
    .map((pair) => pair.split("="))
    .find(([name]) => name.endsWith("session-token"));
  const session = await Auth(new Request(`${origin}/auth/session`, { headers: { cookie: `${cookie}=${token}` } }), config);
  return { cookie, token, session: await session.json() };
}

answer(async ({ signed }) => ({
  ...(await login(signed ? { ...configuration, jwt } : configuration)),
  secret: process.env.JWT_SECRET,
  v4: await encodeOfV4({ token: { sub: account.id, email: account.email }, secret: configuration.secret }),
}));
