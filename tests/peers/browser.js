// Browsers that follow the redirects of a login. The hosts app.test and alias.test are the gateway.
//
// {"do": "gateway", "address"}                  → where that is
// {"do": "browse", "jar", "url", "form"?, "until"?} → {"status", "url", "body", "hops", "cookies", "longest"}: follows redirects; stops
//                                                  in front of a URL that begins with `until`. `longest`: bytes of the longest Cookie field
// {"do": "jar", "jar", "set"?, "remove"?}       → {"cookies"}: a browser's cookies for app.test

import { request as send } from "node:http";

export const jars = new Map();
export const at = { gateway: undefined };

// One request of a browser.
export function fetchOne(jar, url, form) {
  const target = new URL(url);
  const own = jar[target.host] ?? (jar[target.host] = new Map());
  const [host, number] = ["app.test", "alias.test"].includes(target.host) ? at.gateway.split(":") : [target.hostname, target.port];
  const cookie = [...own].map(([name, value]) => `${name}=${value}`).join("; ");
  const body = form ? new URLSearchParams(form).toString() : undefined;
  const headers = {
    host: target.host,
    accept: "text/html,*/*",
    "sec-fetch-mode": "navigate",
    "sec-fetch-site": form ? "same-origin" : "none",
    ...(cookie && { cookie }),
    ...(form && { origin: target.origin, "content-type": "application/x-www-form-urlencoded", "content-length": Buffer.byteLength(body) }),
  };
  return new Promise((resolve, reject) => {
    const sent = send({ host, port: number, path: target.pathname + target.search, method: form ? "POST" : "GET", headers, agent: false }, (response) => {
      const parts = [];
      response.on("data", (part) => parts.push(part));
      response.on("end", () => {
        for (const line of response.headers["set-cookie"] ?? []) {
          const [, name, value] = /^([^=]*)=([^;]*)/.exec(line);
          // In its attributes: a token may contain any digits.
          if (value && !/; *(max-age=0|expires=[^;]* 1970 )/i.test(line)) own.set(name, value);
          else own.delete(name);
        }
        resolve({ status: response.statusCode, headers: response.headers, body: Buffer.concat(parts).toString(), cookie: cookie.length });
      });
    });
    sent.on("error", reject);
    sent.end(body);
  });
}

export const browser = {
  gateway: ({ address }) => {
    at.gateway = address;
    return {};
  },

  browse: async ({ jar: name, url, form, until }) => {
    const jar = jars.get(name) ?? {};
    jars.set(name, jar);
    const hops = [];
    let longest = 0;
    let next = new URL(url, "http://app.test").href;
    for (let steps = 0; steps < 25; steps += 1) {
      if (until && next.startsWith(until)) return { status: 0, url: next, body: "", hops, longest, cookies: Object.fromEntries(jar["app.test"] ?? []) };
      const got = await fetchOne(jar, next, form);
      form = undefined;
      if (next.startsWith("http://app.test")) longest = Math.max(longest, got.cookie);
      hops.push({ url: next, status: got.status, set: (got.headers["set-cookie"] ?? []).length });
      if (!got.headers.location) return { status: got.status, url: next, body: got.body, hops, longest, cookies: Object.fromEntries(jar["app.test"] ?? []) };
      next = new URL(got.headers.location, next).href;
    }
    return { status: -1, url: next, body: "it goes round in circles", hops, longest, cookies: {} };
  },

  jar: ({ jar: name, set, remove }) => {
    const jar = jars.get(name) ?? {};
    jars.set(name, jar);
    const own = jar["app.test"] ?? (jar["app.test"] = new Map());
    for (const [cookie, value] of Object.entries(set ?? {})) own.set(cookie, value);
    for (const cookie of remove ?? []) own.delete(cookie);
    return { cookies: Object.fromEntries(own) };
  },
};
