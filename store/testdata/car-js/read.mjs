// Usage: node read.mjs FILE.car LAYER_CID OUT
// Checks every block's hash, prints the root and its name, and writes the file
// that LAYER_CID names, read as UnixFS.
import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { CarReader } from '@ipld/car'
import * as dagCBOR from '@ipld/dag-cbor'
import { exporter } from 'ipfs-unixfs-exporter'

const [file, layer, out] = process.argv.slice(2)
const car = await CarReader.fromIterable(createReadStream(file))
const blocks = new Map()
for await (const { cid, bytes } of car.blocks()) {
  const sum = createHash('sha256').update(bytes).digest()
  if (cid.multihash.code !== 0x12 || !sum.equals(cid.multihash.digest)) {
    throw new Error(`block ${cid} does not match its hash`)
  }
  blocks.set(cid.toString(), bytes)
}
const roots = await car.getRoots()
if (roots.length !== 1) throw new Error(`${roots.length} roots`)
const root = dagCBOR.decode(blocks.get(roots[0].toString()))
console.log(`root ${roots[0]} name ${root.name} layers ${root.layers.length}`)

const store = {
  async * get (cid) {
    const bytes = blocks.get(cid.toString())
    if (bytes === undefined) throw new Error(`block ${cid} is missing`)
    yield bytes
  }
}
const entry = await exporter(layer, store)
const to = createWriteStream(out)
for await (const chunk of entry.content()) to.write(chunk)
await new Promise((resolve, reject) => to.end(err => err ? reject(err) : resolve()))
