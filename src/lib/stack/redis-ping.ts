// Redis asked directly, in its own protocol: the password goes over the socket, and stands on no command line.
import { connect } from "node:net"
import { messageOf } from "../errors.ts"
import type { Secret } from "../secret.ts"

const answerTimeoutMs = 5000

/**
 * AUTH and PING.
 * @returns undefined when it says PONG, else why not
 */
export function whyNoPong(
	{ host, port }: { host: string; port: number },
	password: Secret | undefined,
	timeoutMs = answerTimeoutMs,
): Promise<string | undefined> {
	return new Promise((resolve) => {
		const socket = connect({ host, port })
		let said = ""
		const end = (because: string | undefined) => {
			clearTimeout(timer)
			socket.destroy()
			resolve(because)
		}
		const timer = setTimeout(() => end("no answer in time"), timeoutMs)
		socket.on("error", (error) => end(messageOf(error)))
		socket.on("close", () => end("it hung up"))
		socket.on("connect", () => {
			const words = [...(password === undefined ? [] : [["AUTH", password.reveal()]]), ["PING"]]
			socket.write(words.map(request).join(""))
		})
		socket.on("data", (chunk) => {
			said += chunk.toString("latin1")
			// Its words on a refusal: WRONGPASS …, NOAUTH …. After the first sentence comes advice, a page of it.
			const refusal = /^-(.*)\r\n/m.exec(said)?.[1]
			if (refusal !== undefined) end(refusal.split(/(?<=\.)\s/)[0])
			else if (said.includes("+PONG\r\n")) end(undefined)
		})
	})
}

const request = (words: readonly string[]) =>
	`*${words.length}\r\n${words.map((word) => `$${Buffer.byteLength(word)}\r\n${word}\r\n`).join("")}`
