// Holds Kubernetes manifests against the definitions that their projects publish, as the API server would with strict validation.
//
// {"manifests": text} → {"kinds": [kind…], "checked": [kind…], "errors": [text…]}. Kinds of Envoy Gateway are not published in a package, and are
// not checked.

import * as gateway from "@kubernetes-models/gateway-api/gateway.networking.k8s.io/v1";
import * as traefik from "@kubernetes-models/traefik/traefik.io/v1alpha1";
import { createRequire } from "node:module";
import ts from "typescript";
import { parseAllDocuments } from "yaml";
import { answer } from "./lines.js";

const folder = (name) => createRequire(import.meta.url).resolve(`${name}/package.json`).replace(/package\.json$/, "");
const known = {
  "gateway.networking.k8s.io/v1": [gateway, `${folder("@kubernetes-models/gateway-api")}gateway.networking.k8s.io/v1`],
  "traefik.io/v1alpha1": [traefik, `${folder("@kubernetes-models/traefik")}traefik.io/v1alpha1`],
};

// Fields that a kind does not have: the API server would drop them. The types of the package know them all.
function unknownFields(manifest, types) {
  const name = `${process.cwd()}/manifest.ts`;
  const text = `import type { I${manifest.kind} } from "${types}/${manifest.kind}";\nexport const manifest: I${manifest.kind} = ${JSON.stringify(manifest)};\n`;
  const options = { strict: true, noEmit: true, skipLibCheck: true, types: [], module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler };
  const host = ts.createCompilerHost(options);
  const { readFile, fileExists, getSourceFile } = host;
  host.fileExists = (path) => path === name || fileExists(path);
  host.readFile = (path) => (path === name ? text : readFile(path));
  host.getSourceFile = (path, version) => (path === name ? ts.createSourceFile(path, text, version) : getSourceFile(path, version));
  const found = ts.getPreEmitDiagnostics(ts.createProgram([name], options, host));
  return found.map((one) => ts.flattenDiagnosticMessageText(one.messageText, " "));
}

// The package has the standard channel of the Gateway API, where the type of a filter may not be ExternalAuth. In the experimental one it may, and
// the filter itself is the same.
function asStandard(manifest) {
  const copy = structuredClone(manifest);
  for (const filter of (copy.spec?.rules ?? []).flatMap((rule) => rule.filters ?? [])) {
    if (filter.type === "ExternalAuth" && filter.externalAuth) filter.type = "ExtensionRef";
  }
  return copy;
}

await answer(({ manifests }) => {
  const answers = { kinds: [], checked: [], errors: [] };
  for (const document of parseAllDocuments(manifests)) {
    answers.errors.push(...document.errors.map(String));
    const manifest = document.toJS();
    answers.kinds.push(manifest.kind);
    const [models, types] = known[manifest.apiVersion] ?? [];
    if (!models) continue;
    answers.checked.push(manifest.kind);
    try {
      new models[manifest.kind](asStandard(manifest)).validate();
    } catch (error) {
      answers.errors.push(`${manifest.kind}: ${error.message}`);
    }
    answers.errors.push(...unknownFields(manifest, types).map((text) => `${manifest.kind}: ${text}`));
  }
  return answers;
});
