#!/usr/bin/env node
// The compiler that package-lock.json pins, as the command that forge expects: `--version`, or
// `--standard-json` from stdin to stdout.
import { readFileSync, realpathSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(realpathSync(fileURLToPath(import.meta.url)));
const solc = createRequire(join(here, "solc.mjs"))("solc");
if (process.argv.includes("--version")) {
  console.log(`solc, the solidity compiler commandline interface\nVersion: ${solc.version()}`);
} else if (process.argv.includes("--standard-json")) {
  process.stdout.write(solc.compile(readFileSync(0, "utf8")));
} else {
  console.error("usage: solc.mjs --version | --standard-json < INPUT > OUTPUT");
  process.exit(2);
}
