// CRC-64/NVME once more, bit by bit from its definition and not from the code under test, so that the two can differ.

const table = Array.from({ length: 256 }, (_, byte) => {
	let crc = BigInt(byte)
	for (let bit = 0; bit < 8; bit++) crc = (crc & 1n) === 1n ? (crc >> 1n) ^ 0x9a6c9329ac4bc9b5n : crc >> 1n
	return [Number(crc >> 32n), Number(crc & 0xffffffffn)] as const
})

/** 8 bytes in base64. */
export function crc64Of(bytes: Uint8Array): string {
	let high = 0xffffffff
	let low = 0xffffffff
	for (const byte of bytes) {
		const [tableHigh = 0, tableLow = 0] = table[(low ^ byte) & 255] ?? []
		low = ((low >>> 8) | (high << 24)) ^ tableLow
		high = (high >>> 8) ^ tableHigh
	}
	const value = Buffer.alloc(8)
	value.writeUInt32BE(~high >>> 0, 0)
	value.writeUInt32BE(~low >>> 0, 4)
	return value.toString("base64")
}
