// Compiles src/*.sol and tests/*.sol and writes one JSON artifact per contract to the folder named by
// the argument.
import { mkdirSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { compile, sources } from "./compile.mjs";

const [target] = process.argv.slice(2);
if (target === undefined) {
  console.error("usage: node build.mjs FOLDER");
  process.exit(2);
}
mkdirSync(resolve(target), { recursive: true });
for (const artifact of compile(sources())) {
  const path = join(resolve(target), `${artifact.contract}.json`);
  writeFileSync(path, `${JSON.stringify(artifact, null, 2)}\n`);
}
