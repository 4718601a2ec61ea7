// A client that openapi-typescript and openapi-fetch make of our description: its types are checked against client.mts, then that
// runs.
//
// {"description": FILE, "address": URL, "email", "password"} → as client.py answers, or {"types": [fault]}

import { copyFileSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import openapiTS, { astToString } from "openapi-typescript";
import ts from "typescript";
import { answer } from "./lines.js";

const folder = mkdtempSync(join(tmpdir(), "portcullis-client-"));
process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
symlinkSync(join(import.meta.dirname, "node_modules"), join(folder, "node_modules"));

await answer(async ({ description, address, email, password }) => {
  writeFileSync(join(folder, "portcullis.d.mts"), astToString(await openapiTS(pathToFileURL(description))));
  const source = join(folder, "client.mts");
  copyFileSync(join(import.meta.dirname, "client.mts"), source);
  const program = ts.createProgram([source], {
    strict: true,
    module: ts.ModuleKind.NodeNext,
    moduleResolution: ts.ModuleResolutionKind.NodeNext,
    target: ts.ScriptTarget.ES2022,
    lib: ["lib.es2022.d.ts", "lib.dom.d.ts", "lib.dom.iterable.d.ts"],
    types: [],
    skipLibCheck: true,
  });
  const faults = ts.getPreEmitDiagnostics(program);
  if (faults.length > 0) {
    return { types: faults.map(({ messageText }) => ts.flattenDiagnosticMessageText(messageText, "\n")) };
  }
  program.emit();
  const { use } = await import(pathToFileURL(join(folder, "client.mjs")));
  return use(address, email, password);
});
