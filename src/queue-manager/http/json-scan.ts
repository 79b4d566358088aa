// Reads megabytes of JSON without building them and without holding up others: checks that the text is whole, and says
// where the members of its outermost object stand. A workflow then goes to Redis and to a worker as it came.
import { isUtf8 } from "node:buffer"
import { setImmediate as breathe } from "node:timers/promises"

/** Where something stands: from its first byte to behind its last. */
export type Span = { start: number; end: number }

export type Scanned = {
	/** Members of the outermost object; of two with one name the last counts, as in JSON.parse. */
	members: ReadonlyMap<string, Span>
	/** How often each `class_type` stands anywhere: what kind of work a workflow is. */
	classTypes: ReadonlyMap<string, number>
	/** Where the input that was asked for stands, of each node: what is at `<node>.inputs.<input>`. */
	inputs: readonly { node: string; span: Span }[]
}

/** The text is no JSON, or nested too deep. The message says what and at which byte. */
export class JsonTextError extends Error {}

const mostDepth = 256
const mostClassTypes = 200
const sliceBytes = 64 * 1024

const isSpace = (byte: number) => byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09
const numberPattern = /^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?$/
const isOfNumber = (byte: number) =>
	(byte >= 0x30 && byte <= 0x39) || byte === 0x2d || byte === 0x2b || byte === 0x2e || (byte | 0x20) === 0x65
const classType = Buffer.from('"class_type"')

// Long texts are read one after the other: ten at a time would each take their slice between two answers.
let lane: Promise<unknown> = Promise.resolve()

/**
 * Scans a JSON text whose outermost value is an object.
 * @param input name of an input whose places in a workflow are wanted
 * @throws {JsonTextError} when it is something else, isn't JSON or UTF-8, or is nested deeper than 256
 */
export function scanJson(bytes: Buffer, input?: string): Promise<Scanned> {
	if (bytes.length <= sliceBytes) return scan(bytes, input)
	const scanned = lane.then(() => scan(bytes, input))
	lane = scanned.catch(() => undefined)
	return scanned
}

async function scan(bytes: Buffer, input: string | undefined): Promise<Scanned> {
	if (!isUtf8(bytes)) throw new JsonTextError("the body is not UTF-8")
	const members = new Map<string, Span>()
	const classTypes = new Map<string, number>()
	const inputs: { node: string; span: Span }[] = []
	// 1 for an object, 0 for an array, from the outside in.
	const nesting = new Uint8Array(mostDepth)
	let depth = 0
	let at = 0
	let wants: "value" | "key" | "key or end" | "value or end" | "comma or end" | "end" = "value"
	let memberStart = 0
	let member = ""
	let isClassType = false
	let isInInputs = false
	let isWanted = false
	let wantedStart = 0

	const fail = (what: string): never => {
		throw new JsonTextError(`${what} at byte ${at}`)
	}
	const skipSpace = () => {
		while (at < bytes.length && isSpace(bytes[at] ?? 0)) at++
	}

	/** From an opening quote to behind the closing one. */
	function string(): Span {
		const start = at
		at++
		for (;;) {
			const byte = bytes[at]
			if (byte === undefined) return fail("a string without an end")
			if (byte === 0x22) break
			if (byte < 0x20) fail("a control character in a string")
			if (byte === 0x5c) {
				at++
				const escaped = bytes[at]
				if (escaped === 0x75) {
					if (!/^[0-9a-fA-F]{4}$/.test(bytes.toString("latin1", at + 1, at + 5))) fail("a broken escape")
					at += 4
				} else if (escaped === undefined || !'"\\/bfnrt'.includes(String.fromCharCode(escaped))) {
					fail("a broken escape")
				}
			}
			at++
		}
		at++
		return { start, end: at }
	}

	function literal(): void {
		for (const word of ["true", "false", "null"]) {
			if (bytes.toString("latin1", at, at + word.length) === word) {
				at += word.length
				return
			}
		}
		const start = at
		while (isOfNumber(bytes[at] ?? 0)) at++
		if (!numberPattern.test(bytes.toString("latin1", start, at))) fail("no JSON")
	}

	function ended(): void {
		if (depth === 1) members.set(member, { start: memberStart, end: at })
		if (depth === 3 && isWanted) inputs.push({ node: member, span: { start: wantedStart, end: at } })
		wants = depth === 0 ? "end" : "comma or end"
	}

	function open(kind: 0 | 1): void {
		if (depth === mostDepth) fail(`nested deeper than ${mostDepth}`)
		nesting[depth++] = kind
		if (depth === 2) isInInputs = false
		// An array has no names: what was wanted in another node's inputs isn't wanted here.
		if (depth === 3) isWanted = false
		at++
		wants = kind === 1 ? "key or end" : "value or end"
	}

	function close(): void {
		depth--
		at++
		ended()
	}

	function key(): void {
		if (bytes[at] !== 0x22) fail("a name in quotes is missing")
		const span = string()
		const name = () => JSON.parse(bytes.toString("utf8", span.start, span.end)) as string
		if (depth === 1) member = name()
		if (depth === 2 && input !== undefined) isInInputs = name() === "inputs"
		if (depth === 3) isWanted = isInInputs && name() === input
		isClassType =
			span.end - span.start === classType.length && classType.equals(bytes.subarray(span.start, span.end))
		skipSpace()
		if (bytes[at] !== 0x3a) fail("a colon is missing")
		at++
		wants = "value"
	}

	function value(): void {
		const byte = bytes[at]
		if (depth === 0 && byte !== 0x7b) fail("the body is not an object")
		if (depth === 1) memberStart = at
		if (depth === 3) wantedStart = at
		if (byte === 0x7b) open(1)
		else if (byte === 0x5b) open(0)
		else {
			if (byte === 0x22) text()
			else literal()
			ended()
		}
	}

	function text(): void {
		const { start, end } = string()
		if (!isClassType || classTypes.size >= mostClassTypes || end - start > 200) return
		const name = bytes.toString("utf8", start + 1, end - 1)
		classTypes.set(name, (classTypes.get(name) ?? 0) + 1)
	}

	function token(): void {
		const byte = bytes[at]
		const closing = nesting[depth - 1] === 1 ? 0x7d : 0x5d
		if (wants === "value") value()
		else if (wants === "key") key()
		else if (byte === closing) close()
		else if (wants === "key or end") key()
		else if (wants === "value or end") value()
		else if (byte === 0x2c) {
			at++
			wants = closing === 0x7d ? "key" : "value"
		} else fail("a comma is missing")
	}

	let sliceEnd = sliceBytes
	for (;;) {
		skipSpace()
		// `wants` is changed by the functions above, which the compiler doesn't follow.
		if ((wants as string) === "end") break
		if (at >= bytes.length) fail("the text ends too early")
		token()
		if (at > sliceEnd) {
			await breathe()
			sliceEnd = at + sliceBytes
		}
	}
	if (at < bytes.length) fail("something follows the body's end")
	return { members, classTypes, inputs }
}

/** Whether a span holds an object with at least one member. */
export function isFilledObject(bytes: Buffer, { start }: Span): boolean {
	if (bytes[start] !== 0x7b) return false
	let at = start + 1
	while (isSpace(bytes[at] ?? 0)) at++
	return bytes[at] !== 0x7d
}
