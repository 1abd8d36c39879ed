/**
 * CRC-64/NVME, as `logs.proto` asks for it, eight bytes at a step
 * ("slicing by 8": Kounavis and Berry, "A Systematic Approach to Building High Performance
 * Software-Based CRC Generators", 2005). JavaScript has no 64-bit integers that are fast, so a sum
 * is two halves of 32 bits.
 */
const polynomial = 0x9a6c9329ac4bc9b5n;
const slices = 8;
const low = new Int32Array(256 * slices);
const high = new Int32Array(256 * slices);

for (let byte = 0; byte < 256; byte++) {
  let sum = BigInt(byte);
  for (let bit = 0; bit < 8; bit++) {
    sum = sum & 1n ? (sum >> 1n) ^ polynomial : sum >> 1n;
  }
  low[byte] = Number(BigInt.asIntN(32, sum));
  high[byte] = Number(BigInt.asIntN(32, sum >> 32n));
}
for (let i = 256; i < 256 * slices; i++) {
  const l = low[i - 256]!;
  const h = high[i - 256]!;
  const byte = l & 0xff;
  low[i] = ((l >>> 8) | (h << 24)) ^ low[byte]!;
  high[i] = (h >>> 8) ^ high[byte]!;
}

/** A running sum: update it with all bytes in their order, in pieces of any size. */
export class Crc64 {
  private low = 0;
  private high = 0;

  /** Goes on from the bytes of a former sum, the most significant first; none is an empty sum. */
  static from(bytes: Uint8Array): Crc64 {
    const sum = new Crc64();
    if (bytes.length === 8) {
      const view = new DataView(bytes.buffer, bytes.byteOffset, 8);
      sum.high = view.getInt32(0);
      sum.low = view.getInt32(4);
    }
    return sum;
  }

  clone(): Crc64 {
    const copy = new Crc64();
    copy.low = this.low;
    copy.high = this.high;
    return copy;
  }

  update(bytes: Uint8Array): void {
    let l = ~this.low;
    let h = ~this.high;
    let i = 0;
    for (const end = bytes.length - 7; i < end; i += 8) {
      const x = l ^ (bytes[i]! | (bytes[i + 1]! << 8) | (bytes[i + 2]! << 16) | (bytes[i + 3]! << 24));
      const y = h ^ (bytes[i + 4]! | (bytes[i + 5]! << 8) | (bytes[i + 6]! << 16) | (bytes[i + 7]! << 24));
      const a = 0x700 + (x & 0xff);
      const b = 0x600 + ((x >>> 8) & 0xff);
      const c = 0x500 + ((x >>> 16) & 0xff);
      const d = 0x400 + (x >>> 24);
      const e = 0x300 + (y & 0xff);
      const f = 0x200 + ((y >>> 8) & 0xff);
      const g = 0x100 + ((y >>> 16) & 0xff);
      const k = y >>> 24;
      l = low[a]! ^ low[b]! ^ low[c]! ^ low[d]! ^ low[e]! ^ low[f]! ^ low[g]! ^ low[k]!;
      h = high[a]! ^ high[b]! ^ high[c]! ^ high[d]! ^ high[e]! ^ high[f]! ^ high[g]! ^ high[k]!;
    }
    for (; i < bytes.length; i++) {
      const byte = (l ^ bytes[i]!) & 0xff;
      l = ((l >>> 8) | (h << 24)) ^ low[byte]!;
      h = (h >>> 8) ^ high[byte]!;
    }
    this.low = ~l;
    this.high = ~h;
  }

  /** The sum, the most significant byte first. */
  bytes(): Buffer {
    const bytes = Buffer.alloc(8);
    bytes.writeInt32BE(this.high, 0);
    bytes.writeInt32BE(this.low, 4);
    return bytes;
  }
}
