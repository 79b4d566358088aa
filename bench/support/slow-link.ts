// A link with a round trip: a TCP proxy that hands every byte on after a while, in order.
import { connect, createServer, type Socket } from "node:net"

export type SlowLink = {
	/** On 127.0.0.1. */
	port: number
	/** How often the talk went to the other side and back, since the last call: what a round trip each costs. */
	turns(): number
	[Symbol.asyncDispose](): Promise<void>
}

/** @param delayMs in each direction */
export async function openSlowLink(to: { host: string; port: number }, delayMs: number): Promise<SlowLink> {
	let turns = 0
	const sockets = new Set<Socket>()
	const server = createServer({ noDelay: true }, (client) => {
		const host = connect({ ...to, noDelay: true })
		let last: "client" | "host" | undefined
		const carry = (from: Socket, onto: Socket, who: "client" | "host") => {
			sockets.add(from)
			from.on("data", (chunk) => {
				if (who === "client" && last !== "client") turns++
				last = who
				setTimeout(() => onto.write(chunk), delayMs)
			})
			from.on("end", () => setTimeout(() => onto.end(), delayMs))
			from.on("error", () => onto.destroy())
			from.on("close", () => sockets.delete(from))
		}
		carry(client, host, "client")
		carry(host, client, "host")
	})
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
	const address = server.address()
	if (address === null || typeof address === "string") throw new Error("the link has no port")
	return {
		port: address.port,
		turns: () => {
			const counted = turns
			turns = 0
			return counted
		},
		async [Symbol.asyncDispose]() {
			for (const socket of sockets) socket.destroy()
			await new Promise((resolve) => server.close(resolve))
		},
	}
}
