// The server's half of a WebSocket, as far as a stand-in needs it: it sends texts, and sees the other side leave.
import { createHash } from "node:crypto"
import type { IncomingMessage } from "node:http"
import type { Duplex } from "node:stream"

export type ServerSocket = { send(text: string): void; close(): void }

/** Answers an upgrade; `onClose` when the other side is gone. */
export function acceptSocket(request: IncomingMessage, stream: Duplex, onClose: () => void): ServerSocket {
	const key = `${request.headers["sec-websocket-key"]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`
	const accept = createHash("sha1").update(key).digest("base64")
	stream.write(
		`HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`,
	)
	const frame = (opcode: number, body: Buffer) => {
		const head =
			body.length < 126
				? Buffer.from([0x80 | opcode, body.length])
				: body.length < 65_536
					? Buffer.from([0x80 | opcode, 126, body.length >> 8, body.length & 255])
					: Buffer.concat([Buffer.from([0x80 | opcode, 127, 0, 0, 0, 0]), uint32(body.length)])
		return Buffer.concat([head, body])
	}
	stream.on("data", (bytes: Buffer) => {
		if (((bytes[0] ?? 0) & 0x0f) === 8) stream.end(frame(8, Buffer.alloc(0)))
	})
	stream.on("error", () => {})
	stream.on("close", onClose)
	return {
		send: (text) => void (stream.writable && stream.write(frame(1, Buffer.from(text)))),
		close: () => stream.destroy(),
	}
}

function uint32(value: number): Buffer {
	const bytes = Buffer.alloc(4)
	bytes.writeUInt32BE(value)
	return bytes
}
