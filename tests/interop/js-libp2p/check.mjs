// A js-libp2p node against Sluice's own relay and provider: what any libp2p peer must be able to do.
//
// usage: node check.mjs '{"relay": ["/ip4/../p2p/..", ..], "provider": "12D3..", "topic": ".."}'
// It prints one line for each check and exits with 0 if all passed. After the line `waiting for an
// order` it listens for one.

import { strict as assert } from 'node:assert'
import { noise } from '@chainsafe/libp2p-noise'
import { quic } from '@chainsafe/libp2p-quic'
import { yamux } from '@chainsafe/libp2p-yamux'
import { circuitRelayTransport } from '@libp2p/circuit-relay-v2'
import { gossipsub } from '@libp2p/gossipsub'
import { identify } from '@libp2p/identify'
import { kadDHT } from '@libp2p/kad-dht'
import { peerIdFromString } from '@libp2p/peer-id'
import { ping } from '@libp2p/ping'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createLibp2p } from 'libp2p'

const CONTROL = '/sluice/control/1'
const CIRCUIT_BYTES = 128n * 1024n
const CIRCUIT_SECONDS = 120
const PATIENCE = 30_000

const { relay, provider, topic } = JSON.parse(process.argv[2])
const providerId = peerIdFromString(provider)
const text = new TextEncoder()
const join = (...parts) => Uint8Array.from(parts.flatMap((part) => [...part]))

// The length-delimited fields of a protobuf message, by number; other fields as numbers.
function fields (bytes) {
  const found = []
  let at = 0
  const varint = () => {
    let value = 0n
    for (let shift = 0n; ; shift += 7n) {
      assert(at < bytes.length, 'a message ends too early')
      const byte = bytes[at++]
      value |= BigInt(byte & 0x7f) << shift
      if (byte < 0x80) return value
    }
  }
  while (at < bytes.length) {
    const tag = Number(varint())
    if ((tag & 7) === 0) found.push([tag >> 3, varint()])
    else if ((tag & 7) === 1) { found.push([tag >> 3, bytes.slice(at, at + 8)]); at += 8 } else {
      assert.equal(tag & 7, 2, 'an unknown kind of field')
      const length = Number(varint())
      assert(at + length <= bytes.length, 'a field is longer than its message')
      found.push([tag >> 3, bytes.slice(at, at + length)])
      at += length
    }
  }
  return found
}
const isBy = (name, peer) => Buffer.compare(name, peer.toMultihash().bytes) === 0
const field = (bytes, number) => fields(bytes).find(([n]) => n === number)?.[1]

// A record that its node signed; returns the record's own bytes.
async function recordOf (bytes, peer) {
  const [record, signature] = [field(bytes, 1), field(bytes, 2)]
  assert(isBy(field(record, 2), peer), 'the record is of another node')
  const signed = join(text.encode('sluice record v1'), record)
  assert(await peer.publicKey.verify(signed, signature), 'the record is not signed by its node')
  return record
}

function until (what, ask) {
  return new Promise((resolve, reject) => {
    const end = Date.now() + PATIENCE
    const again = async () => {
      let answer
      try { answer = await ask() } catch (error) { if (Date.now() > end) return reject(error) }
      if (answer) return resolve(answer)
      if (Date.now() > end) return reject(new Error(`${what}: not within ${PATIENCE / 1000} s`))
      setTimeout(again, 100)
    }
    again()
  })
}

function node (transports, listen = [], services = {}) {
  return createLibp2p({
    addresses: { listen },
    transports,
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    connectionGater: { denyDialMultiaddr: () => false },
    services: { identify: identify(), ping: ping(), ...services }
  })
}

const dht = kadDHT({
  protocol: '/sluice/kad/1',
  clientMode: true,
  peerInfoMapper: (info) => info,
  validators: { sluice: async () => {} },
  selectors: { sluice: () => 0 }
})

function gossip (components) {
  const service = gossipsub({ fallbackToFloodsub: false })(components)
  service.protocols = ['1.2.0', '1.1.0', '1.0.0'].map((version) => `/sluice/gossip/${version}`)
  return service
}

// Sends one request and reads its answer: each after its length as a big-endian u16.
async function ask (stream, request) {
  const chunks = []
  const ended = new Promise((resolve, reject) => {
    stream.addEventListener('message', (event) => chunks.push(event.data.subarray()))
    stream.addEventListener('remoteCloseWrite', () => resolve())
    stream.addEventListener('close', (event) => (event.error ? reject(event.error) : resolve()))
  })
  stream.send(join([request.length >> 8, request.length & 255], request))
  await stream.close()
  await ended
  const answer = join(...chunks)
  assert.equal(answer.length, 2 + (answer[0] << 8) + answer[1], 'the answer has another length')
  return answer.slice(2)
}

let failed = 0
async function check (name, body) {
  try {
    const said = await body()
    console.log(`ok      ${name}${said ? `: ${said}` : ''}`)
  } catch (error) {
    failed += 1
    console.log(`FAILED  ${name}: ${error.stack ?? error}`)
  }
}

const overQuic = multiaddr(relay.find((address) => address.includes('/quic-v1')))
const overTcp = multiaddr(relay.find((address) => address.includes('/tcp/')))
const relayId = peerIdFromString(overQuic.getComponents().at(-1).value)

for (const [name, transport, address] of [['QUIC', quic(), overQuic], ['TCP', tcp(), overTcp]]) {
  await check(`dials the relay over ${name}, identifies, pings`, async () => {
    const alone = await node([transport])
    try {
      const identified = new Promise((resolve) => {
        alone.addEventListener('peer:identify', ({ detail }) => resolve(detail))
      })
      const connection = await alone.dial(address)
      const known = await identified
      assert.match(known.agentVersion, /^sluice\//)
      for (const wanted of ['/sluice/kad/1', CONTROL, '/libp2p/circuit/relay/0.2.0/hop', '/libp2p/autonat/2/dial-request']) {
        assert(known.protocols.includes(wanted), `the relay does not speak ${wanted}`)
      }
      return `${known.agentVersion}, ${await alone.services.ping.ping(connection.remotePeer)} ms`
    } finally {
      await alone.stop()
    }
  })
}

const js = await node([quic(), tcp(), circuitRelayTransport()], [`${overQuic}/p2p-circuit`], { dht, gossip })

await check('reserves at the relay', async () => {
  const circuit = await until('a circuit', () => js.getMultiaddrs().find((a) => a.toString().includes('/p2p-circuit')))
  const connection = js.getConnections(relayId)[0]
  assert(connection.remoteAddr.toString().includes('/quic-v1'), `not over QUIC: ${connection.remoteAddr}`)
  return circuit.toString().replace(/\/p2p\/[^/]*/g, '/p2p/..')
})

await check('finds the provider\'s record in the DHT', async () => {
  const key = join(text.encode('/sluice/record/1/'), providerId.toMultihash().bytes)
  const found = await until('the record', async () => {
    for await (const event of js.services.dht.get(key)) {
      if (event.name === 'VALUE') return event.value
    }
  })
  const record = await recordOf(found, providerId)
  return `${record.length} bytes, signed, number ${field(record, 3)}`
})

await check('reaches the provider\'s control protocol through a circuit', async () => {
  // On loopback there may be a direct connection by now; it would be taken instead.
  const connection = await js.dial(multiaddr(`${overQuic}/p2p-circuit/p2p/${provider}`), { force: true })
  assert(connection.remotePeer.equals(providerId))
  assert(connection.limits, 'the circuit has no limits')
  assert(connection.limits.bytes <= CIRCUIT_BYTES, `${connection.limits.bytes} bytes in a circuit`)
  assert(connection.limits.seconds <= CIRCUIT_SECONDS, `${connection.limits.seconds} s for a circuit`)
  const stream = await connection.newStream(CONTROL, { runOnLimitedConnection: true })
  // Ask { version: 1, relays: {} }
  const answer = await ask(stream, Uint8Array.of(0x08, 1, 0x22, 0))
  const known = field(answer, 3)
  assert(known, `another answer: ${Buffer.from(answer).toString('hex')}`)
  const records = fields(known).map(([, record]) => record)
  const own = records.find((record) => isBy(field(field(record, 1), 2), relayId))
  assert(own, `the relay is not among the ${records.length} that the provider knows`)
  await recordOf(own, relayId)
  return `${records.length} relays known; the circuit carries ${connection.limits.bytes} bytes`
})

await check('refuses what it does not know, by name', async () => {
  const connection = js.getConnections(providerId).find(({ limits }) => limits)
  const stream = await connection.newStream(CONTROL, { runOnLimitedConnection: true })
  // Ask { version: 1 } and a kind of a later version.
  const answer = await ask(stream, Uint8Array.of(0x08, 1, 0xfa, 1, 0))
  assert.equal(field(field(answer, 4), 1), 1n)
})

await check('receives an order by gossip', async () => {
  const heard = new Promise((resolve, reject) => {
    js.services.gossip.addEventListener('gossipsub:message', ({ detail }) => {
      if (detail.msg.topic === topic) resolve(detail.msg)
    })
    setTimeout(() => reject(new Error('no order')), 2 * PATIENCE).unref()
  })
  js.services.gossip.subscribe(topic)
  await until('a peer of the topic', () => js.services.gossip.getSubscribers(topic).length > 0)
  console.log('waiting for an order')
  const { data, from } = await heard
  const [order, signature] = [field(data, 1), field(data, 2)]
  assert(isBy(field(order, 2), from), 'told by another than its tenant')
  const signed = join(text.encode('sluice order v1'), order)
  assert(await from.publicKey.verify(signed, signature), 'the order is not signed by its tenant')
  return `${data.length} bytes, region ${Buffer.from(field(order, 5))}, signed by ${from}`
})

await js.stop()
console.log(failed === 0 ? 'all passed' : `${failed} FAILED`)
process.exit(failed === 0 ? 0 : 1)
