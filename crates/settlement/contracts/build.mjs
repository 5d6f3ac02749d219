// Compiles src/*.sol and tests/*.sol and writes one JSON artifact per contract to the folder named by
// the argument.
// The same inputs give the same bytes: compiler and libraries are pinned by package-lock.json, and no
// metadata hash is appended to the code.
import { mkdirSync, readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const solc = createRequire(import.meta.url)("solc");
const here = dirname(fileURLToPath(import.meta.url));
const [target] = process.argv.slice(2);
if (target === undefined) {
  console.error("usage: node build.mjs FOLDER");
  process.exit(2);
}

const files = ["src", "tests"].flatMap((folder) =>
  readdirSync(join(here, folder))
    .filter((name) => name.endsWith(".sol"))
    .sort()
    .map((name) => `${folder}/${name}`),
);
const input = {
  language: "Solidity",
  sources: Object.fromEntries(
    files.map((file) => [file, { content: readFileSync(join(here, file), "utf8") }]),
  ),
  settings: {
    evmVersion: "cancun",
    viaIR: true,
    optimizer: { enabled: true, runs: 1_000_000 },
    metadata: { bytecodeHash: "none", appendCBOR: false },
    outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } },
  },
};

const findImport = (path) => ({ contents: readFileSync(join(here, "node_modules", path), "utf8") });
const output = JSON.parse(solc.compile(JSON.stringify(input), { import: findImport }));
// 2394 advises care with transient storage; OpenZeppelin's guard clears its slot after each call.
const problems = (output.errors ?? []).filter((problem) => problem.errorCode !== "2394");
for (const problem of problems) console.error(problem.formattedMessage);
if (problems.length > 0) process.exit(1);

mkdirSync(resolve(target), { recursive: true });
for (const file of files) {
  const name = basename(file, ".sol");
  const contract = output.contracts[file][name];
  const artifact = {
    contract: name,
    compiler: solc.version(),
    abi: contract.abi,
    bytecode: `0x${contract.evm.bytecode.object}`,
    deployedBytecode: `0x${contract.evm.deployedBytecode.object}`,
  };
  writeFileSync(join(resolve(target), `${name}.json`), `${JSON.stringify(artifact, null, 2)}\n`);
}
