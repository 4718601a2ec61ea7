// A typical application: POST /login mints a token with jsonwebtoken, without `iss` and `aud`. The other routes check nothing: the
// gateway has verified the token, and X-Auth-User and X-Auth-Roles name the caller.

import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import express from "express";
import jwt from "jsonwebtoken";

const PORT = Number(process.env.PORT ?? 3000);
const SECRET_FILE = process.env.JWT_SECRET_FILE ?? fileURLToPath(new URL("jwt.secret", import.meta.url));

// Example accounts, with new passwords at each start.
const accounts = [
  { id: 1, email: "alice@example.com", role: "user", password: randomBytes(9).toString("base64url") },
  { id: 2, email: "root@example.com", role: "admin", password: randomBytes(9).toString("base64url") },
];

// The gateway creates this file at its first start. The newline at its end is not part of the secret.
const secret = () => readFileSync(SECRET_FILE, "utf8").replace(/\r?\n$/, "");

const digest = (text) => createHash("sha256").update(String(text)).digest();

// The gateway percent-encodes characters that a header field cannot contain.
function caller(request) {
  const roles = request.get("X-Auth-Roles") ?? "";
  return {
    user: decodeURIComponent(request.get("X-Auth-User") ?? ""),
    roles: roles === "" ? [] : roles.split(",").map(decodeURIComponent),
  };
}

const app = express();
app.disable("x-powered-by");
app.use(express.json());

app.post("/login", (request, response) => {
  const { email, password } = request.body ?? {};
  const account = accounts.find((account) => account.email === email);
  if (!account || !timingSafeEqual(digest(password), digest(account.password))) {
    return response.status(401).json({ error: "wrong e-mail or password" });
  }
  const token = jwt.sign({ userId: account.id, role: account.role }, secret(), { algorithm: "HS256", expiresIn: "1h" });
  return response.json({ token });
});

app.get("/public/about", (_request, response) => {
  response.json({ about: "anyone may read this" });
});

app.get("/orders", (request, response) => {
  response.json({ ordersOf: caller(request).user });
});

app.get("/admin/accounts", (request, response) => {
  response.json({ askedBy: caller(request), accounts: accounts.map(({ id, email, role }) => ({ id, email, role })) });
});

// Loopback only: anyone who could reach this port directly could write any X-Auth-User.
app.listen(PORT, "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${PORT}`);
  for (const { email, role, password } of accounts) {
    console.log(`${role}: ${email} ${password}`);
  }
});
