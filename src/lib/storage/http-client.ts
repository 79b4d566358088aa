// One connection of HTTP/1.1, as the transfer threads need it: bodies of known length, straight from the socket into
// large buffers. Node's own client cuts what comes into 64 KiB pieces, and each of them costs a fifth of its transfer.
import { connect as connectTcp, type Socket } from "node:net"
import { connect as connectTls } from "node:tls"
import { ExchangeFailed } from "./exchange-failed.ts"
import { longestHeadBytes, onWire, type Receiver, receive } from "./http-receive.ts"

export type Exchange = {
	method: "GET" | "PUT"
	url: string
	headers: Readonly<Record<string, string>>
	/** The bytes to send, with their number. */
	body?: { sizeBytes: number; chunks: AsyncIterable<Buffer> }
	connectTimeoutMs: number
	stallMs: number
	leastBytes: number
	/** Looks at an answer of 2xx before its body is read; throws to refuse it. @returns the length of the body */
	onHead: (head: HttpHead) => number
	/** Takes the body in chunks of 1 MiB, the last one smaller. Each belongs to the taker until the promise resolves. */
	onChunk: (chunk: Buffer) => Promise<void>
}

export type HttpHead = { status: number; headers: ReadonlyMap<string, string> }

const chunkBytes = 1024 * 1024

export type HttpConnection = {
	/** Sends one request and takes its answer; keeps the connection for the next one to the same host. */
	exchange(exchange: Exchange): Promise<HttpHead>
	close(): void
}

/** Connects with the first exchange. Not for two exchanges at once. */
export function httpConnection(): HttpConnection {
	const buffers = [Buffer.allocUnsafeSlow(chunkBytes), Buffer.allocUnsafeSlow(chunkBytes)]
	const spare = Buffer.allocUnsafeSlow(longestHeadBytes)
	let wire: { socket: Socket; origin: string } | undefined
	let receiver: Receiver | undefined

	const drop = () => {
		wire?.socket.destroy()
		wire = undefined
	}
	const open = (url: URL, connectTimeoutMs: number) => {
		const host = url.hostname.replace(/^\[|\]$/g, "")
		const port = Number(url.port === "" ? (url.protocol === "https:" ? 443 : 80) : url.port)
		// What an older connection still says is nothing to a newer one.
		let own: Socket | undefined
		const current = () => (own !== undefined && wire?.socket === own ? receiver : undefined)
		const onread = {
			buffer: () => current()?.room() ?? spare,
			callback: (count: number, buffer: Uint8Array) => current()?.received(count, buffer) ?? false,
		}
		const socket: Socket =
			url.protocol === "https:"
				? connectTls({
						host,
						port,
						...(isName(host) && { servername: host }),
						ALPNProtocols: ["http/1.1"],
						// It takes this as TCP does, and its types don't say so.
						...({ onread } as object),
					})
				: connectTcp({ host, port, onread })
		own = socket
		const timer = setTimeout(
			() => socket.destroy(new ExchangeFailed("no connection in time", { code: "ConnectTimeout" })),
			connectTimeoutMs,
		)
		socket.once(url.protocol === "https:" ? "secureConnect" : "connect", () => clearTimeout(timer))
		socket.once("close", () => clearTimeout(timer))
		socket.setNoDelay(true)
		// One listener for good: an error that comes between two exchanges must not end the thread.
		socket.on("error", (error) => current()?.failed(error))
		const onClosed = () => {
			current()?.failed(new ExchangeFailed("the connection was closed", { code: "ECONNRESET" }))
			if (wire?.socket === socket) wire = undefined
		}
		socket.on("end", onClosed)
		socket.on("close", onClosed)
		return socket
	}

	return {
		close: drop,
		async exchange(exchange) {
			const url = new URL(exchange.url)
			if (wire?.origin !== url.origin) drop()
			const fresh = wire === undefined
			const current = wire ?? { socket: open(url, exchange.connectTimeoutMs), origin: url.origin }
			wire = current
			const { socket } = current
			try {
				const head = await new Promise<HttpHead>((resolve, reject) => {
					receiver = receive(exchange, socket, { buffers, spare, fresh }, resolve, reject)
					socket.resume()
					send(exchange, url, socket, receiver).catch(reject)
				})
				const { headers } = head
				if (headers.get("connection")?.toLowerCase() === "close" || !headers.has("content-length")) drop()
				return head
			} catch (error) {
				drop()
				throw error
			} finally {
				receiver?.over()
				receiver = undefined
			}
		},
	}
}

async function send(exchange: Exchange, url: URL, socket: Socket, receiver: Receiver): Promise<void> {
	const { method, headers, body } = exchange
	const lines = Object.entries({
		host: url.host,
		"accept-encoding": "identity",
		...(body && { "content-length": String(body.sizeBytes) }),
		...headers,
	}).map(([name, value]) => `${name}: ${value}\r\n`)
	const write = (bytes: Buffer | string) =>
		new Promise<void>((resolve, reject) => {
			socket.write(bytes, (error) => (error == null ? resolve() : reject(onWire(error))))
		})
	receiver.dog.resume()
	await write(`${method} ${url.pathname}${url.search} HTTP/1.1\r\n${lines.join("")}\r\n`)
	if (body === undefined) return
	for await (const chunk of body.chunks) {
		// An answer before the end is a refusal; the rest would go nowhere.
		if (receiver.answered) return
		await write(chunk)
		receiver.dog.moved(chunk.length)
	}
}

// A certificate is asked for by name; an address has none.
const isName = (host: string) => !/^[\d.]+$|:/.test(host)
