// Room for large bodies and answers: so much at once for all, and of that a share for each, so that nobody takes it from
// the others by sending or reading a lot, or slowly.
import { setTimeout as pause } from "node:timers/promises"
import type { Principal } from "../identity.ts"

const mebibyte = 1024 * 1024

type Who = Pick<Principal, "role" | "name">
export type Room = {
	/** Takes room until what it gives is called; or says whose limit it is. */
	take(who: Who, bytes: number): (() => void) | "all" | "own"
	/** The same, and waits for it in line. @returns undefined when there was none in `mostMs` */
	wait(who: Who, bytes: number, mostMs: number): Promise<(() => void) | undefined>
}

/** Bodies that come in: fifty of the largest workflows. */
export const roomForBodies = () => makeRoom(768 * mebibyte, { user: 128 * mebibyte, worker: 256 * mebibyte })

/** Results that go out: each user has room for the largest there is. */
export const roomForResults = () => makeRoom(256 * mebibyte, { user: 64 * mebibyte })

/** Makes room, empty. @param shares what one of a role may take; all of it when it isn't named */
function makeRoom(mostBytes: number, shares: Partial<Record<Who["role"], number>>): Room {
	let underWay = 0
	const byWho = new Map<string, number>()
	let line: { who: Who; bytes: number; go: (free: () => void) => void }[] = []

	function take({ role, name }: Who, bytes: number): (() => void) | "all" | "own" {
		const who = `${role}:${name}`
		const own = byWho.get(who) ?? 0
		if (own + bytes > (shares[role] ?? mostBytes)) return "own"
		if (underWay + bytes > mostBytes) return "all"
		underWay += bytes
		byWho.set(who, own + bytes)
		let isFree = false
		return () => {
			if (isFree) return
			isFree = true
			underWay -= bytes
			const left = (byWho.get(who) ?? 0) - bytes
			if (left > 0) byWho.set(who, left)
			else byWho.delete(who)
			advance()
		}
	}

	/** Who stands in front goes first; who waits for their own room only holds up nobody. */
	function advance(): void {
		const waiting = line
		line = []
		let isFull = false
		for (const one of waiting) {
			const taken: ReturnType<typeof take> = isFull ? "all" : take(one.who, one.bytes)
			isFull ||= taken === "all"
			if (typeof taken === "function") one.go(taken)
			else line.push(one)
		}
	}

	return {
		take,
		async wait(who, bytes, mostMs) {
			const over = new AbortController()
			let entry: (typeof line)[number] | undefined
			const turn = new Promise<() => void>((resolve) => {
				entry = { who, bytes, go: resolve }
				line.push(entry)
			})
			advance()
			const late = pause(mostMs, undefined, { signal: over.signal }).catch(() => undefined)
			const free = await Promise.race([turn, late])
			over.abort()
			line = line.filter((one) => one !== entry)
			return free
		},
	}
}
