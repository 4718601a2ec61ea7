// gRPC calls with @grpc/grpc-js, asked as tests/peers/calls.py is: a line of JSON for each question, and for each answer.
const grpc = require("@grpc/grpc-js");
const { version } = require("@grpc/grpc-js/package.json");
const readline = require("node:readline");

const text = {
  requestSerialize: Buffer.from, requestDeserialize: String, responseSerialize: Buffer.from, responseDeserialize: String,
};
const streams = { Unary: [false, false], Down: [false, true], Up: [true, false], Both: [true, true] };
const methods = (service) =>
  Object.fromEntries(Object.entries(streams).map(([name, [requestStream, responseStream]]) =>
    [name, { path: `/${service}/${name}`, requestStream, responseStream, ...text }]));
const limits = { "grpc.max_receive_message_length": -1, "grpc.max_metadata_size": 64 * 1024 };

const reply = (message, call) => `${message}|${call.metadata.get("x-auth-user")[0] ?? "nobody"}`;
const ends = (value) => { const trailers = new grpc.Metadata(); trailers.set("x-end", value); return trailers; };

const handlers = {
  Unary(call, done) {
    if (call.request === "fail") return done({ code: grpc.status.DATA_LOSS, details: "it failed" });
    if (call.request === "large") {
      const initial = new grpc.Metadata();
      initial.set("x-large", "y".repeat(40_000));
      call.sendMetadata(initial);
    }
    const pause = call.request.startsWith("sleep ") ? Number(call.request.split(" ")[1]) * 1000 : 0;
    setTimeout(() => done(null, reply(call.request, call), ends("of unary")), pause);
  },
  Down(call) {
    for (let number = 0; number < Number(call.request); number++) call.write(reply(String(number), call));
    call.end(ends("of down"));
  },
  Up(call, done) {
    const received = [];
    call.on("data", (message) => received.push(message));
    call.on("end", () => done(null, reply(received.join(" "), call)));
  },
  Both(call) {
    call.on("data", (message) => call.write(reply(message, call)));
    call.on("end", () => call.end());
  },
};

function serve() {
  const server = new grpc.Server(limits);
  server.addService(methods("shop.Inventory"), handlers);
  return new Promise((go, fail) => server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(),
    (error, port) => (error ? fail(error) : go({ port }))));
}

function call({ call: kind, address, messages, service = "shop.Inventory", metadata = {}, timeout = 20 }) {
  const Client = grpc.makeGenericClientConstructor(methods(service), service);
  const client = new Client(address, grpc.credentials.createInsecure(), limits);
  const sent = new grpc.Metadata();
  for (const [name, value] of Object.entries(metadata)) sent.set(name, value);
  const answered = [], options = { deadline: Date.now() + timeout * 1000 };
  return new Promise((go) => {
    let initial = {};
    const one = (error, message) => { if (!error) answered.push(message); };
    const running = kind === "Unary" ? client.Unary(messages[0], sent, options, one)
      : kind === "Up" ? client.Up(sent, options, one)
      : kind === "Down" ? client.Down(messages[0], sent, options) : client.Both(sent, options);
    running.on("metadata", (received) => { initial = received.getMap(); });
    running.on("status", ({ code, details, metadata: trailers }) => {
      client.close();
      const lengths = Object.fromEntries(Object.entries(initial).map(([name, value]) => [name, value.length]));
      // The last message of a unary call is passed on after its status.
      setImmediate(() => go({ code, details, messages: answered, trailers: trailers.getMap(), initial: lengths }));
    });
    if (streams[kind][1]) {
      running.on("error", () => {});
      running.on("data", (message) => {
        answered.push(message);
        // Each message is sent only after the one before was answered.
        if (kind === "Both") answered.length < messages.length ? running.write(messages[answered.length]) : running.end();
      });
    }
    if (kind === "Up") { for (const message of messages) running.write(message); running.end(); }
    if (kind === "Both") running.write(messages[0]);
  });
}

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const asked = JSON.parse(line);
  const answer = asked.version ? { version } : asked.serve ? await serve() : await call(asked);
  console.log(JSON.stringify(answer));
});
