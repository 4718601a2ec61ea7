// The HTTP server in front of a provider: it counts requests, breaks down, and goes away.
//
// {"do": "down"} and {"do": "up"}      → nobody listens; they do again
// {"do": "break", "how", "at"?}        → this path (the token endpoint) answers "html", "large", "redirect", "slow" or "unavailable"; "" as before;
//                                         "lost": it does what it is asked, and the connection ends before it responds
// {"do": "count"}                      → {"counts"}: requests by path

import { createServer } from "node:http";

export function server(respond) {
  const counts = {};
  const sockets = new Set();
  let port = 0;
  let broken = { how: "", at: "/token" };

  const breakdowns = {
    html: (response) => response.writeHead(200, { "content-type": "text/html" }).end("<!doctype html><title>Welcome</title>"),
    large: (response) => response.writeHead(200, { "content-type": "application/json" }).end(`{"x":"${"x".repeat(10_000_000)}"}`),
    redirect: (response) => response.writeHead(307, { location: `http://127.0.0.1:${port}/elsewhere` }).end(),
    slow: (response) => {
      response.writeHead(200, { "content-type": "application/json" });
      const drip = setInterval(() => response.write(" "), 100);
      response.on("close", () => clearInterval(drip));
    },
    lost: (response) => {
      response.write = () => true;
      response.end = () => response.socket.destroy();
    },
    unavailable: (response) => response.writeHead(503).end(),
  };

  const listening = createServer((request, response) => {
    const { pathname } = new URL(request.url, "http://provider.test");
    counts[pathname] = (counts[pathname] ?? 0) + 1;
    if (broken.how && pathname === broken.at) {
      breakdowns[broken.how](response);
      if (broken.how !== "lost") return;
    }
    Promise.resolve(respond(request, response, pathname)).catch((error) => {
      console.error(error);
      response.writeHead(500).end();
    });
  });
  listening.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  const listen = () => new Promise((resolve) => listening.listen(port, "127.0.0.1", resolve));

  return {
    // Listens, and returns the issuer.
    listen: async () => {
      if (!listening.listening) await listen();
      port = listening.address().port;
      return `http://127.0.0.1:${port}`;
    },

    verbs: {
      down: () =>
        new Promise((resolve) => {
          listening.close(() => resolve({}));
          for (const socket of sockets) socket.destroy();
        }),

      up: async () => {
        await listen();
        return {};
      },

      break: ({ how, at = "/token" }) => {
        broken = { how, at };
        return {};
      },

      count: () => ({ counts }),
    },
  };
}
