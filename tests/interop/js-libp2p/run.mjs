// Starts a relay, a provider that chooses it in the mesh, and, when the checks are ready for it, a
// tenant with an order; then reports what the checks say.

import { spawn } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer } from 'node:http'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'

const PATIENCE = 120_000
const REGION = 'world'
const sluice = process.argv[2]
const here = dirname(fileURLToPath(import.meta.url))
const state = mkdtempSync(join(tmpdir(), 'sluice-interop-'))
const children = []

// Starts a role in a directory of its own; `said(pick)` is the first event that `pick` makes something of.
function start (name, args, program = sluice) {
  const own = program === sluice ? ['--json', '--state-dir', join(state, name)] : []
  const child = spawn(program, [...args, ...own], { cwd: state, stdio: ['ignore', 'pipe', 'inherit'] })
  children.push(child)
  const lines = []
  const waiting = new Set()
  const ended = new Promise((resolve) => child.on('close', resolve))
  createInterface({ input: child.stdout }).on('line', (line) => {
    lines.push(line)
    for (const look of waiting) look(line)
  })
  const said = (pick) => new Promise((resolve, reject) => {
    const look = (line) => {
      let found
      try { found = pick(line) } catch { return }
      if (found === undefined || found === false) return
      waiting.delete(look)
      resolve(found)
    }
    waiting.add(look)
    lines.forEach(look)
    ended.then((code) => reject(new Error(`${name} ended with ${code}:\n${lines.join('\n')}`)))
    setTimeout(() => reject(new Error(`${name} did not say it in time:\n${lines.join('\n')}`)), PATIENCE).unref()
  })
  return { ended, said, lines }
}

const web = createServer((_, answer) => answer.end('from home\n')).listen(0, '127.0.0.1')
await new Promise((resolve) => web.on('listening', resolve))
let code = 1
try {
  const relay = start('relay', ['relay', '--bind', '127.0.0.1:0', '--mesh', '127.0.0.1:0'])
  const mesh = await relay.said((line) => JSON.parse(line).mesh)
  const provide = ['provide', '--expose', `web=tcp:127.0.0.1:${web.address().port}`]
  const provider = start('provide', [...provide, '--sell', '--bootstrap', mesh[0]])
  await provider.said((line) => JSON.parse(line).ticket)
  let peer
  for (const end = Date.now() + PATIENCE; !peer && Date.now() < end;) {
    const nodes = start('provide', ['nodes'])
    await nodes.ended
    peer = nodes.lines.map((line) => JSON.parse(line)).find(({ roles }) => roles.includes('provider'))?.peer
  }
  if (!peer) throw new Error('the provider is not among its nodes')
  const asked = JSON.stringify({ relay: mesh, provider: peer, topic: `sluice/orders/1/${REGION}` })
  const checks = start('checks', [join(here, 'check.mjs'), asked], process.execPath)
  const ready = checks.said((line) => line === 'waiting for an order').then(() => {
    const order = ['order', '--service', 'web', '--bids-only', '--bootstrap', mesh[0]]
    start('tenant', order)
  })
  // If a check before it ends all, there is no order.
  ready.catch(() => {})
  code = await checks.ended
  console.log(checks.lines.join('\n'))
} catch (error) {
  console.log(`FAILED  ${error.message}`)
} finally {
  for (const child of children) child.kill('SIGTERM')
  const isOver = (child) => child.exitCode !== null || child.signalCode !== null
  await Promise.all(children.map((child) => isOver(child) || new Promise((resolve) => child.on('close', resolve))))
  rmSync(state, { recursive: true, force: true })
  web.close()
}
process.exit(code)
