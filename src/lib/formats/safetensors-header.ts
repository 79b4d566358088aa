// The JSON in front of a safetensors file, read byte by byte. Not by JSON.parse: it hides keys that stand twice, takes
// numbers that have lost their last digits, and builds the whole of what a hostile file says before any of it is judged.
import { isUtf8 } from "node:buffer"

/** The header breaks the specification. The message says where and how. */
export class HeaderError extends Error {
	override name = "HeaderError"
}

/** Where a tensor's bytes lie, counted from the end of the header. */
export type TensorSpan = { name: string; begin: number; end: number }

/** Bits per element, for every dtype of the reference implementation. */
const dtypeBits: ReadonlyMap<string, number> = new Map([
	["F4", 4],
	["F6_E2M3", 6],
	["F6_E3M2", 6],
	...["BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"].map(eight),
	["I16", 16],
	["U16", 16],
	["F16", 16],
	["BF16", 16],
	["I32", 32],
	["U32", 32],
	["F32", 32],
	["C64", 64],
	["F64", 64],
	["I64", 64],
	["U64", 64],
])

function eight(name: string): [string, number] {
	return [name, 8]
}

// What isn't known is passed over as the reference implementation does it, but not to any depth.
const deepest = 64

/**
 * Reads a header and checks each tensor by itself: a known dtype, and as many bytes as its shape takes. Memory grows
 * with the number of tensors, not with their shapes or the metadata.
 * @param bytes the header alone, padding included
 * @returns the tensors in the order of the header
 * @throws {HeaderError} when it is not what the specification asks for
 */
export function parseHeader(bytes: Buffer): TensorSpan[] {
	if (!isUtf8(bytes)) throw new HeaderError("the header is not UTF-8")
	const scan = scanner(bytes)
	const tensors: TensorSpan[] = []
	scan.members("the header", (name) => {
		if (name !== "__metadata__") tensors.push(readTensor(scan, name))
		else scan.members("__metadata__", () => void scan.string("a text in __metadata__"))
	})
	scan.end()
	return tensors
}

function readTensor(scan: Scanner, name: string): TensorSpan {
	const called = `the tensor ${JSON.stringify(name.length > 80 ? `${name.slice(0, 77)}...` : name)}`
	let bits: number | undefined
	let elements: number | undefined
	const offsets: number[] = []
	scan.members(called, (key) => {
		if (key === "dtype") {
			const dtype = scan.string(`the dtype of ${called}`)
			bits = dtypeBits.get(dtype)
			if (bits === undefined)
				throw new HeaderError(`${called} has the unknown dtype ${JSON.stringify(dtype.slice(0, 40))}`)
		} else if (key === "shape") {
			elements = 1
			scan.items(`the shape of ${called}`, () => {
				elements = safe((elements ?? 1) * scan.whole(`the shape of ${called}`), called)
			})
		} else if (key === "data_offsets") {
			scan.items(`data_offsets of ${called}`, () => {
				if (offsets.length === 2) throw new HeaderError(`${called} has more than two data_offsets`)
				offsets.push(scan.whole(`data_offsets of ${called}`))
			})
		} else scan.skip(0)
	})
	const [begin, end] = offsets
	if (bits === undefined) throw new HeaderError(`${called} has no dtype`)
	if (elements === undefined) throw new HeaderError(`${called} has no shape`)
	if (begin === undefined || end === undefined) throw new HeaderError(`${called} has no two data_offsets`)
	if (end < begin) throw new HeaderError(`${called} ends at ${end}, before it begins at ${begin}`)
	const sizeBits = safe(elements * bits, called)
	if (sizeBits % 8 !== 0) throw new HeaderError(`${called} ends inside a byte`)
	if (sizeBits / 8 !== end - begin)
		throw new HeaderError(`${called} takes ${sizeBits / 8} bytes by its shape, ${end - begin} by its offsets`)
	return { name, begin, end }
}

function safe(value: number, called: string): number {
	if (!Number.isSafeInteger(value)) throw new HeaderError(`${called} is larger than can be counted`)
	return value
}

type Scanner = {
	/** An object; `read` is called behind each key's colon. @throws for keys that stand twice */
	members(what: string, read: (key: string) => void): void
	items(what: string, read: () => void): void
	string(what: string): string
	/** A number of digits alone, as counts and offsets are. */
	whole(what: string): number
	/** Any value. */
	skip(depth: number): void
	/** Nothing but padding may follow. */
	end(): void
}

const [quote, backslash, openBrace, closeBrace, openBracket, closeBracket] = Buffer.from('"\\{}[]')
const [colon, comma, zero, nine, minus] = Buffer.from(":,09-")
const spaces: ReadonlySet<number | undefined> = new Set(Buffer.from(" \t\n\r"))

function scanner(bytes: Buffer): Scanner {
	let at = 0
	const space = () => {
		while (spaces.has(bytes[at])) at++
	}
	const expected = (what: string) => new HeaderError(`at byte ${at} of the header there should be ${what}`)
	const takes = (byte: number | undefined) => {
		space()
		if (at >= bytes.length || bytes[at] !== byte) return false
		at++
		return true
	}
	const isDigit = (byte: number | undefined) =>
		byte !== undefined && byte >= Number(zero) && byte <= Number(nine)

	const string = (what: string) => {
		if (!takes(quote)) throw expected(what)
		const begin = at - 1
		while (at < bytes.length && bytes[at] !== quote) at += bytes[at] === backslash ? 2 : 1
		if (at >= bytes.length) throw new HeaderError(`the text at byte ${begin} of the header has no end`)
		at++
		try {
			const text: unknown = JSON.parse(bytes.toString("utf8", begin, at))
			if (typeof text === "string" && text.isWellFormed()) return text
		} catch {
			// Said below: JSON.parse would quote the text, which may be long.
		}
		throw new HeaderError(`the text at byte ${begin} of the header is not JSON`)
	}
	const whole = (what: string) => {
		space()
		const begin = at
		while (isDigit(bytes[at])) at++
		const text = bytes.toString("latin1", begin, Math.min(at, begin + 20))
		if (!/^(0|[1-9]\d*)$/.test(text) || ".eE".includes(String.fromCharCode(bytes[at] ?? 0)))
			throw new HeaderError(`at byte ${begin} of the header there should be a whole number (${what})`)
		return safe(Number(text), what)
	}
	const list = (what: string, [open, close]: [number | undefined, number | undefined], one: () => void) => {
		if (!takes(open)) throw expected(`the ${open === openBrace ? "{" : "["} of ${what}`)
		if (takes(close)) return
		do one()
		while (takes(comma))
		if (!takes(close)) throw expected(`a comma or the end of ${what}`)
	}
	const members = (what: string, read: (key: string) => void) => {
		const keys = new Set<string>()
		list(what, [openBrace, closeBrace], () => {
			const key = string(`a key of ${what}`)
			if (keys.has(key))
				throw new HeaderError(`the key ${JSON.stringify(key.slice(0, 80))} stands twice in ${what}`)
			keys.add(key)
			if (!takes(colon)) throw expected("a colon")
			read(key)
		})
	}
	const items = (what: string, read: () => void) => list(what, [openBracket, closeBracket], read)
	const skip = (depth: number): void => {
		if (depth > deepest) throw new HeaderError(`the header is nested deeper than ${deepest}`)
		space()
		const first = bytes[at]
		if (first === quote) string("a text")
		else if (first === openBrace) members("a block that is not known", () => skip(depth + 1))
		else if (first === openBracket) items("a list that is not known", () => skip(depth + 1))
		else skipPlain(first === minus || isDigit(first))
	}
	const skipPlain = (isNumber: boolean) => {
		// Numbers of any length are legal JSON; none that is longer than this means anything.
		const text = bytes.toString("latin1", at, at + 400)
		const match = isNumber
			? /^-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?/.exec(text)
			: /^(true|false|null)/.exec(text)
		if (match === null) throw expected("a value")
		at += match[0].length
	}
	const end = () => {
		space()
		if (at < bytes.length)
			throw new HeaderError(`something other than padding stands at byte ${at} of the header`)
	}
	return { members, items, string, whole, skip, end }
}
