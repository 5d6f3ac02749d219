// Runs the tests and invariants of forge/ on the committed bytes of Channels, and then, as a control, on
// copies with one line spoilt each. The tests must catch every copy; calls at random, which may miss one,
// most of them. Prints a table.
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { compile, here, sources } from "./compile.mjs";

const DEPTH = 500;
const CALLS_DEFAULT = 20_000;
const CONTROL_CALLS = 4_000;
const MODELS = 12;
const INVARIANTS = "ChannelsTest";
const CHANNELS = "src/Channels.sol";
const OUT = join(here, "forge/out");
const TALLY = join(OUT, "tally");

const swap = (from, to) => (text) => {
  if (text.split(from).length !== 2) throw new Error(`forge.mjs: not exactly one "${from}" in ${CHANNELS}`);
  return text.replace(from, () => to);
};
// What is spoilt, and how.
const SPOILT = [
  ["vouchers above the deposit pay", swap("if (amount > channel.deposit) return (id, 0, Refusal.OverDeposit);", "")],
  ["vouchers of what was redeemed pay", swap("if (amount <= redeemed) return", "if (amount < redeemed) return")],
  ["what was paid is forgotten", swap("channel.redeemed = uint96(redeemed);\n        emit", "emit")],
  ["anyone's signature is good", swap("found == account;", "(found == account || found != address(0));")],
  ["closed channels pay", swap(" || channel.closesAt == CLOSED) return", ") return")],
  ["closed channels open again", swap("require(channels[id].period == 0, ChannelExists(id));", "")],
  ["less may arrive than was sent", swap("require(received == amount,", "require(received <= amount,")],
  ["tokens may call back", (text) => text.replaceAll(/\s+nonReentrant\b/g, "")],
  ["periods are not waited for", swap("require(block.timestamp >= closesAt, TooEarly(closesAt));", "")],
  ["anyone starts a close", swap("require(msg.sender == key.payer, NotPayer());\n        (bytes32", "(bytes32")],
  ["refunds forget what was paid", swap("Math.min(channel.deposit - redeemed, most)", "Math.min(channel.deposit, most)")],
  ["neighbours share the first one's payout", swap(" || item.key.payout != payout) {", ") {")],
  ["payees need not consent", swap("msg.sender == key.payee || _signedBy", "true || _signedBy")],
  ["ids do not bind the chain", swap("abi.encode(key, block.chainid, address(this))", "abi.encode(key, address(this))")],
  ["deposits shrink to 96 bits", swap("require(deposit <= type(uint96).max, DepositTooLarge(deposit));", "")],
  ["rests of short tokens are stuck", swap("msg.sender == key.payer ? _balance(key.token) : ", "")],
];

const { values: options } = parseArgs({
  options: {
    calls: { type: "string", default: String(CALLS_DEFAULT) },
    seed: { type: "string", default: String(Math.floor(Math.random() * 2 ** 32)) },
    json: { type: "boolean", default: false },
  },
});
for (const name of ["calls", "seed"]) {
  if (!/^[0-9]{1,12}$/.test(options[name])) {
    console.error(`contracts/check: --${name} ${options[name]} is not a number of at most 12 digits`);
    process.exit(2);
  }
}

function forge(calls, artifact, ...only) {
  rmSync(TALLY, { force: true });
  const result = spawnSync(process.env.FORGE, ["test", "--color", "never", "--fuzz-seed", options.seed, ...only], {
    cwd: here,
    encoding: "utf8",
    maxBuffer: 1 << 30,
    env: {
      ...process.env,
      FOUNDRY_INVARIANT_RUNS: String(Math.ceil(calls / DEPTH)),
      FOUNDRY_INVARIANT_DEPTH: String(DEPTH),
      FOUNDRY_INVARIANT_SHRINK_RUN_LIMIT: artifact === undefined ? "5000" : "0",
      SLUICE_ARTIFACT: artifact ?? "artifacts/Channels.json",
    },
  });
  if (result.error) throw result.error;
  rmSync(join(here, "forge/cache/failures"), { force: true, recursive: true });
  return { ok: result.status === 0, words: result.stdout + result.stderr };
}

function tally() {
  const sums = new Map();
  for (const line of readFileSync(TALLY, "utf8").trim().split("\n")) {
    const [kind, done, refused] = line.split(" ");
    const [d, r] = sums.get(kind) ?? [0, 0];
    sums.set(kind, [d + Number(done), r + Number(refused)]);
  }
  return sums;
}

// Whether tests that fail, and nothing else, tell the copy from Channels.
function tells(artifact, ...only) {
  const { ok, words } = forge(CONTROL_CALLS, artifact, ...only);
  return !ok && /\[FAIL/.test(words) && !/FAIL.*setUp/.test(words);
}

// Whether the spoilt copy is caught by the tests, and by calls at random.
function caughtBy([what, edit]) {
  const path = "forge/out/spoilt.json";
  const [artifact] = compile({ [CHANNELS]: edit(sources()[CHANNELS]) }, { viaIR: false });
  writeFileSync(join(here, path), JSON.stringify(artifact));
  const by = {
    tests: tells(path, "--no-match-contract", INVARIANTS),
    chance: tells(path, "--match-contract", INVARIANTS),
  };
  const word = (caught) => (caught ? "caught" : "NOT CAUGHT").padStart(10);
  console.log(`  ${what.padEnd(44)} ${word(by.tests)} ${word(by.chance)}`);
  return by;
}

mkdirSync(OUT, { recursive: true });
const { ok, words } = forge(Number(options.calls));
const ran = /\(runs: \d+, calls: (\d+), reverts: (\d+)\)/.exec(words);
if (!ok || ran === null) {
  console.error(words);
  console.error(`contracts/check: a test failed; again with --calls ${options.calls} --seed ${options.seed}`);
  process.exit(1);
}
const [calls, reverts] = [Number(ran[1]), Number(ran[2])];
const tests = words.match(/^\[PASS\]/gm).length;
console.log(`${tests} tests passed; ${calls} calls by anyone over ${MODELS} token models, seed ${options.seed}`);
console.log("  call             done    refused");
const sums = tally();
for (const [kind, [done, refused]] of sums) {
  console.log(`  ${kind.padEnd(14)} ${String(done).padStart(6)} ${String(refused).padStart(10)}`);
}
console.log(`controls: copies of Channels with one thing spoilt   by tests  by chance`);
const controls = SPOILT.map(caughtBy);
const caught = controls.filter((by) => by.tests).length;
const byChance = controls.filter((by) => by.chance).length;

const figures = [
  ["contract fuzz: calls", calls, "calls", CALLS_DEFAULT, calls >= CALLS_DEFAULT],
  ["contract fuzz: calls that broke the books", reverts, "calls", 0, reverts === 0],
  ["contract fuzz: token models", MODELS, "models", MODELS, true],
  ["contract controls caught", caught, "copies", SPOILT.length, caught === SPOILT.length],
  ["contract controls caught by chance", byChance, "copies", SPOILT.length / 2, byChance >= SPOILT.length / 2],
].map(([name, value, unit, target, met]) => ({ name, value, unit, target, met }));
if (options.json) console.log(JSON.stringify({ figures }));
const errors = [...sums]
  .filter(([, [done, refused]]) => done === 0 || refused === 0)
  .map(([kind]) => `${kind} was never done, or never refused`);
if (caught !== SPOILT.length) errors.push("the tests did not catch each control");
if (byChance < SPOILT.length / 2) errors.push("calls at random caught fewer than half of the controls");
for (const error of errors) console.error(`contracts/check: ${error}`);
if (errors.length !== 0) process.exit(1);
