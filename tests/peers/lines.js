// One request a line on standard input, one answer a line on standard output, both JSON. The first line says that it is ready. It ends with its
// input.

import { createInterface } from "node:readline";

export async function answer(respond) {
  process.stdout.write('{"ready":true}\n');
  for await (const line of createInterface({ input: process.stdin })) {
    process.stdout.write(`${JSON.stringify(await respond(JSON.parse(line)))}\n`);
  }
  process.exit(0);
}

export const now = () => Math.floor(Date.now() / 1000);
