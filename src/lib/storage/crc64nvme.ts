// CRC-64/NVME, the only full-object checksum that S3 and R2 keep for objects of many parts. Node has none of its own.
// In JavaScript it takes three times as long as sha256; so its loop is WebAssembly, which knows 64-bit numbers.

const polynomial = 0x9a6c9329ac4bc9b5n
const allOnes = 0xffff_ffff_ffff_ffffn

/** A checksum that is fed in pieces. */
export type Crc64 = {
	update(bytes: Uint8Array): void
	/** The checksum so far: 8 bytes in base64, as the `x-amz-checksum-crc64nvme` header carries it. */
	base64(): string
	/** The same as 16 digits of hex. */
	hex(): string
}

/** Starts a CRC-64/NVME. */
export function crc64nvme(): Crc64 {
	let state = allOnes
	return {
		update(bytes) {
			loop ??= makeLoop()
			state = loop(state, bytes)
		},
		base64: () => toBytes(state ^ allOnes).toString("base64"),
		hex: () => toBytes(state ^ allOnes).toString("hex"),
	}
}

/**
 * The checksum of two stretches, one after the other, from those of each.
 * @param secondBytes length of the second one
 */
export function combineCrc64(first: string, second: string, secondBytes: number): string {
	const moved = multiply(shiftBy(secondBytes), Buffer.from(first, "base64").readBigUInt64BE())
	return toBytes(moved ^ Buffer.from(second, "base64").readBigUInt64BE()).toString("base64")
}

function toBytes(value: bigint): Buffer {
	const bytes = Buffer.alloc(8)
	bytes.writeBigUInt64BE(value)
	return bytes
}

/** The product of two polynomials, modulo that of the checksum; bits reflected. */
function multiply(a: bigint, b: bigint): bigint {
	let product = 0n
	let factor = b
	for (let bit = 63n; bit >= 0n; bit--) {
		if ((a >> bit) & 1n) product ^= factor
		factor = factor & 1n ? (factor >> 1n) ^ polynomial : factor >> 1n
	}
	return product
}

const shifts = new Map<number, bigint>()

/** What a checksum is multiplied with when so many bytes come after it. */
function shiftBy(bytes: number): bigint {
	const known = shifts.get(bytes)
	if (known !== undefined) return known
	let product = 1n << 63n
	// x to the power of 8, and then each time squared.
	let power = 1n << 55n
	for (let left = BigInt(bytes); left > 0n; left >>= 1n) {
		if (left & 1n) product = multiply(power, product)
		power = multiply(power, power)
	}
	shifts.set(bytes, product)
	return product
}

type Loop = (state: bigint, bytes: Uint8Array) => bigint
let loop: Loop | undefined

// Sixteen tables ("slicing by 16") of 256 entries of 8 bytes; behind them the bytes, a stretch at a time, so that they
// stay in the processor's cache.
const tableBytes = 256 * 8
const slices = 16
const stretchBytes = 64 * 1024

// As much of it as is used here: it is the browsers' library that declares it.
type Wasm = {
	Memory: new (size: { initial: number }) => { buffer: ArrayBuffer }
	Module: new (program: Uint8Array) => object
	Instance: new (module: object, imports: object) => { exports: object }
}

function makeLoop(): Loop {
	const { WebAssembly: wasm } = globalThis as unknown as { WebAssembly: Wasm }
	const memory = new wasm.Memory({ initial: 2 })
	const instance = new wasm.Instance(new wasm.Module(program()), { env: { memory } })
	const { run } = instance.exports as { run: (at: number, end: number, state: bigint) => bigint }
	const tables = new BigUint64Array(memory.buffer, 0, slices * 256)
	for (let byte = 0; byte < 256; byte++) {
		let value = BigInt(byte)
		for (let slice = 0; slice < slices; slice++) {
			for (let bit = 0; bit < 8; bit++) value = value & 1n ? (value >> 1n) ^ polynomial : value >> 1n
			tables[slice * 256 + byte] = value
		}
	}
	const begin = slices * tableBytes
	const room = new Uint8Array(memory.buffer, begin, stretchBytes)
	return (state, bytes) => {
		let value = state
		for (let at = 0; at < bytes.length; at += stretchBytes) {
			const stretch = bytes.subarray(at, at + stretchBytes)
			room.set(stretch)
			const whole = stretch.length - (stretch.length % slices)
			value = BigInt.asUintN(64, run(begin, begin + whole, value))
			for (const byte of stretch.subarray(whole))
				value = (value >> 8n) ^ (tables[Number((value ^ BigInt(byte)) & 255n)] ?? 0n)
		}
		return value
	}
}

/**
 * The module: `run(at: i32, end: i32, state: i64): i64`, whose body is
 * `while (at < end) { a = state ^ load(at); b = load(at + 8); state = table15[a & 255] ^ table14[a >> 8 & 255] ^ … }`.
 */
function program(): Uint8Array {
	const [at, end, state, a, b] = [0, 1, 2, 3, 4]
	const get = (local: number) => [0x20, local]
	const set = (local: number) => [0x21, local]
	const load = (offset: number) => [0x29, 3, ...leb(offset)]
	// Of one byte the entry in its table: shifted so that the byte stands three bits up, as the entries are 8 bytes long.
	const lookUp = (local: number, byte: number, table: number) => [
		...get(local),
		...[0x42, ...leb(byte === 0 ? 3 : byte * 8 - 3), byte === 0 ? 0x86 : 0x88],
		...[0xa7, 0x41, ...leb(255 * 8), 0x71],
		...load(table * tableBytes),
	]
	const lookUps = [a, b].flatMap((local, half) =>
		Array.from({ length: 8 }, (_, byte) => lookUp(local, byte, slices - 1 - half * 8 - byte)),
	)
	const body = [
		...[1, 2, 0x7e],
		...[0x02, 0x40, 0x03, 0x40],
		...[...get(at), ...get(end), 0x4f, 0x0d, 1],
		...[...get(state), ...get(at), ...load(0), 0x85, ...set(a)],
		...[...get(at), ...load(8), ...set(b)],
		...lookUps.flatMap((code, index) => (index === 0 ? code : [...code, 0x85])),
		...set(state),
		...[...get(at), 0x41, slices, 0x6a, ...set(at)],
		...[0x0c, 0, 0x0b, 0x0b],
		...[...get(state), 0x0b],
	]
	const text = (value: string) => [value.length, ...Buffer.from(value)]
	const section = (id: number, content: readonly number[]) => [id, ...leb(content.length), ...content]
	return Uint8Array.from([
		...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
		...section(1, [1, 0x60, 3, 0x7f, 0x7f, 0x7e, 1, 0x7e]),
		...section(2, [1, ...text("env"), ...text("memory"), 2, 0, 1]),
		...section(3, [1, 0]),
		...section(7, [1, ...text("run"), 0, 0]),
		...section(10, [1, ...leb(body.length), ...body]),
	])
}

/** A number as WebAssembly writes it: seven bits at a time, and a bit more where it would else look negative. */
function leb(value: number): number[] {
	return value < 64 ? [value] : [(value & 127) | 128, ...leb(value >> 7)]
}
