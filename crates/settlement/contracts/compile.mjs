// The compiler and its settings, the same for the artifacts and for the check's spoilt copies.
// The same inputs give the same bytes: compiler and libraries are pinned by package-lock.json, and no
// metadata hash is appended to the code.
import { readFileSync, readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const solc = createRequire(import.meta.url)("solc");
export const here = dirname(fileURLToPath(import.meta.url));

// Text of all sources, by their names relative to this folder.
export const sources = () =>
  Object.fromEntries(
    ["src", "tests"].flatMap((folder) =>
      readdirSync(join(here, folder))
        .filter((name) => name.endsWith(".sol"))
        .sort()
        .map((name) => [`${folder}/${name}`, readFileSync(join(here, folder, name), "utf8")]),
    ),
  );

// Compiles texts by name; one artifact for each, of the contract that is named as its file. Throws with
// the compiler's words. `settings` are changed for copies that nobody deploys.
export function compile(texts, settings = {}) {
  const input = {
    language: "Solidity",
    sources: Object.fromEntries(Object.entries(texts).map(([file, content]) => [file, { content }])),
    settings: {
      evmVersion: "cancun",
      viaIR: true,
      optimizer: { enabled: true, runs: 1_000_000 },
      metadata: { bytecodeHash: "none", appendCBOR: false },
      outputSelection: { "*": { "*": ["abi", "evm.bytecode.object", "evm.deployedBytecode.object"] } },
      ...settings,
    },
  };
  const findImport = (path) => ({ contents: readFileSync(join(here, "node_modules", path), "utf8") });
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: findImport }));
  // 2394 advises care with transient storage; OpenZeppelin's guard clears its slot after each call.
  const problems = (output.errors ?? []).filter((problem) => problem.errorCode !== "2394");
  if (problems.length > 0) throw new Error(problems.map((problem) => problem.formattedMessage).join("\n"));
  return Object.keys(texts).map((file) => {
    const name = file.replace(/^.*\/|\.sol$/g, "");
    const contract = output.contracts[file][name];
    return {
      contract: name,
      compiler: solc.version(),
      abi: contract.abi,
      bytecode: `0x${contract.evm.bytecode.object}`,
      deployedBytecode: `0x${contract.evm.deployedBytecode.object}`,
    };
  });
}
