// An application with the types that openapi-typescript makes of our description: what client.js checks and runs.

import createClient from "openapi-fetch";
import type { paths } from "./portcullis.mjs";

export async function use(baseUrl: string, email: string, password: string) {
  const api = createClient<paths>({ baseUrl });
  const wrong = await api.POST("/login", { body: { email, password: "wrong" } });
  const first = await api.POST("/login", { body: { email, password } });
  const second = await api.POST("/refresh", { body: { refresh_token: first.data?.refresh_token } });
  const headers = { Authorization: `Bearer ${second.data?.access_token}` };
  const me = await api.GET("/me", { headers });
  await api.POST("/logout", { headers });
  const after = await api.POST("/refresh", { body: { refresh_token: second.data?.refresh_token } });
  return {
    wrong: wrong.error?.reason,
    email: me.data?.email,
    is_successor: first.data?.refresh_token !== second.data?.refresh_token,
    after: after.error?.reason,
  };
}
