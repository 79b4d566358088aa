// Room for large bodies: so much at once for all, and of that a share for each, so that nobody takes it from the others
// by sending a lot, or by sending slowly.

const mebibyte = 1024 * 1024
// Fifty of the largest workflows.
const mostBytes = 768 * mebibyte
const shares = { user: 128 * mebibyte, worker: 256 * mebibyte, admin: mostBytes, open: mostBytes } as const

export type Room = {
	/** Takes room until what it gives is called; or says whose limit it is. */
	take(who: { role: keyof typeof shares; name: string }, bytes: number): (() => void) | "all" | "own"
}

/** Makes room, empty. */
export function makeRoom(): Room {
	let underWay = 0
	const byWho = new Map<string, number>()
	return {
		take({ role, name }, bytes) {
			const who = `${role}:${name}`
			const own = byWho.get(who) ?? 0
			if (own + bytes > shares[role]) return "own"
			if (underWay + bytes > mostBytes) return "all"
			underWay += bytes
			byWho.set(who, own + bytes)
			return () => {
				underWay -= bytes
				const left = (byWho.get(who) ?? 0) - bytes
				if (left > 0) byWho.set(who, left)
				else byWho.delete(who)
			}
		},
	}
}
