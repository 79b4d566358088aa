// Takes apart what comes over a connection: the head, and then the body, put together in large buffers or refused.
import type { Socket } from "node:net"
import { ExchangeFailed } from "./exchange-failed.ts"
import type { Exchange, HttpHead } from "./http-client.ts"
import { type Watchdog, watchdog } from "./watchdog.ts"

export const longestHeadBytes = 64 * 1024
const longestRefusalBytes = 16 * 1024

/** Tells the wire's failures from those of the disk. */
export const onWire = (error: Error & { code?: string }) =>
	error instanceof ExchangeFailed
		? error
		: new ExchangeFailed(error.message, error.code === undefined ? {} : { code: error.code })

export type Receiver = {
	/** Where the next bytes go. */
	room(): Buffer
	/** @returns false to read no more for now */
	received(count: number, buffer: Uint8Array): boolean
	failed(error: Error): void
	over(): void
	readonly dog: Watchdog
	readonly answered: boolean
}

/** Feeds one exchange with what comes. It ends with `resolve` or `reject`, once. */
export function receive(
	exchange: Exchange,
	socket: Socket,
	{ buffers, spare, fresh }: { buffers: readonly Buffer[]; spare: Buffer; fresh: boolean },
	resolve: (head: HttpHead) => void,
	reject: (error: Error) => void,
): Receiver {
	const free = [...buffers]
	let headBytes = Buffer.alloc(0)
	let head: HttpHead | undefined
	let left = 0
	let filling: Buffer | undefined
	let filled = 0
	let taken = 0
	let ended = false
	let refusal: Buffer | undefined
	// What came while no buffer was free.
	let kept: Buffer | undefined

	const finish = (error?: Error) => {
		if (ended) return
		ended = true
		dog.pause()
		if (error !== undefined) reject(error)
		else if (head !== undefined) resolve(head)
	}
	const dog = watchdog({
		stallMs: exchange.stallMs,
		leastBytes: exchange.leastBytes,
		onStall: () =>
			finish(
				new ExchangeFailed(`fewer than ${exchange.leastBytes} bytes in ${exchange.stallMs} ms`, {
					code: "Stalled",
				}),
			),
	})
	const refuse = () => {
		if (head === undefined) return
		const words = refusal?.toString("latin1") ?? ""
		finish(new ExchangeFailed(`status ${head.status}`, { status: head.status, ...refusalOf(head, words) }))
	}
	const give = (chunk: Buffer, buffer: Buffer) => {
		taken++
		dog.pause()
		exchange.onChunk(chunk).then(
			() => {
				taken--
				free.push(buffer)
				if (left === 0 && taken === 0) return finish()
				dog.resume()
				if (kept !== undefined) {
					const late = kept
					kept = undefined
					takeBody(late)
				}
				if (kept === undefined) socket.resume()
			},
			(error: Error) => finish(error),
		)
	}
	/** Body bytes that lie elsewhere are copied to where they belong. */
	const takeBody = (bytes: Buffer): void => {
		if (kept !== undefined) {
			// TLS hands out what it has decrypted even after it was told to pause.
			kept = Buffer.concat([kept, bytes])
			return
		}
		for (let at = 0; at < bytes.length; ) {
			filling ??= free.pop()
			if (filling === undefined) {
				kept = Buffer.from(bytes.subarray(at))
				return
			}
			const count = bytes.copy(filling, filled, at)
			at += count
			took(count)
		}
	}
	const took = (count: number) => {
		const buffer = filling as Buffer
		filled += count
		left -= count
		if (filled < buffer.length && left > 0) return
		const chunk = buffer.subarray(0, filled)
		filling = undefined
		filled = 0
		give(chunk, buffer)
	}
	const takeHead = (bytes: Buffer) => {
		headBytes = Buffer.concat([headBytes, bytes])
		const end = headBytes.indexOf("\r\n\r\n")
		if (end < 0) {
			if (headBytes.length > longestHeadBytes)
				finish(new ExchangeFailed("an endless head", { code: "ForeignAnswer" }))
			return
		}
		const rest = headBytes.subarray(end + 4)
		const parsed = parseHead(headBytes.toString("latin1", 0, end))
		if (parsed === undefined) return finish(new ExchangeFailed("not HTTP", { code: "ForeignAnswer" }))
		if (parsed.status < 200) {
			headBytes = Buffer.alloc(0)
			if (rest.length > 0) takeHead(rest)
			return
		}
		head = parsed
		if (parsed.status >= 300) {
			refusal = Buffer.alloc(0)
			return takeRefusal(rest)
		}
		left = exchange.onHead(parsed)
		if (rest.length > left)
			return finish(new ExchangeFailed("more bytes than announced", { code: "ForeignAnswer" }))
		if (left === 0) return finish()
		takeBody(rest)
	}
	const takeRefusal = (bytes: Buffer) => {
		refusal = Buffer.concat([refusal ?? Buffer.alloc(0), bytes])
		const length = Number(head?.headers.get("content-length") ?? Number.NaN)
		if (refusal.length >= Math.min(length, longestRefusalBytes) || refusal.includes("\r\n0\r\n\r\n")) refuse()
	}
	return {
		dog,
		get answered() {
			return head !== undefined
		},
		room() {
			if (head === undefined || refusal !== undefined) return spare
			filling ??= left > 0 ? free.pop() : undefined
			return filling?.subarray(filled, Math.min(filling.length, filled + left)) ?? spare
		},
		received(count, buffer) {
			if (ended) return false
			dog.moved(count)
			const bytes = Buffer.from(buffer.buffer, buffer.byteOffset, count)
			try {
				if (head === undefined) takeHead(bytes)
				else if (refusal !== undefined) takeRefusal(bytes)
				else if (buffer !== spare && filling !== undefined && buffer.buffer === filling.buffer) took(count)
				else if (count > left)
					finish(new ExchangeFailed("more bytes than announced", { code: "ForeignAnswer" }))
				else takeBody(bytes)
			} catch (error) {
				finish(error as Error)
			}
			return (
				!ended && (head === undefined || refusal !== undefined || filling !== undefined || free.length > 0)
			)
		},
		failed(error) {
			if (refusal !== undefined) return refuse()
			// A kept connection may be closed by the other side while it idles: a fresh one is no retry.
			finish(
				fresh || head !== undefined || headBytes.length > 0
					? onWire(error)
					: new ExchangeFailed(error.message, { code: "ERR_IDLE_CLOSED" }),
			)
		},
		over: () => dog.pause(),
	}
}

function parseHead(text: string): HttpHead | undefined {
	const [first = "", ...lines] = text.split("\r\n")
	const status = /^HTTP\/1\.[01] (\d{3})(?: |$)/.exec(first)?.[1]
	if (status === undefined) return undefined
	const headers = new Map<string, string>()
	for (const line of lines) {
		const colon = line.indexOf(":")
		if (colon > 0) headers.set(line.slice(0, colon).toLowerCase(), line.slice(colon + 1).trim())
	}
	return { status: Number(status), headers }
}

function refusalOf({ status, headers }: HttpHead, words: string): { code?: string; retryAfterMs?: number } {
	const retryAfter = headers.get("retry-after")
	const seconds = Number(retryAfter)
	const retryAfterMs =
		retryAfter === undefined
			? undefined
			: Number.isNaN(seconds)
				? Date.parse(retryAfter) - Date.now()
				: seconds * 1000
	const code =
		status < 400
			? "Redirect"
			: (/<Code>(\w{1,64})<\/Code>/.exec(words)?.[1] ??
				(isPage(words) && status < 500 ? "HtmlAnswer" : undefined))
	return {
		...(code !== undefined && { code }),
		...(retryAfterMs !== undefined && retryAfterMs > 0 && { retryAfterMs }),
	}
}

const isPage = (words: string) => /^[\s\da-f]*<(!doctype html|html|head|body)/i.test(words)
