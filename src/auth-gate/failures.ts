// How often a wrong password came lately. A workshop's room has one address, so one address alone is given much and
// one address with one name little: who mistypes shuts nobody else out.

const windowMs = 60_000
const mostOfPair = 10
const mostOfAddress = 200
const mostEntries = 10_000

export type Failures = {
	isTooMany(address: string, name: string): boolean
	note(address: string, name: string): void
}

/** @param now in milliseconds */
export function countFailures(now: () => number): Failures {
	const counts = new Map<string, { from: number; count: number }>()
	const countOf = (key: string) => {
		const entry = counts.get(key)
		return entry !== undefined && now() - entry.from < windowMs ? entry.count : 0
	}
	const add = (key: string) => {
		const entry = counts.get(key)
		if (entry !== undefined && now() - entry.from < windowMs) entry.count += 1
		else {
			counts.delete(key)
			counts.set(key, { from: now(), count: 1 })
		}
		// The oldest goes: names that somebody makes up must not fill the memory.
		if (counts.size > mostEntries) counts.delete(counts.keys().next().value ?? "")
	}
	return {
		isTooMany: (address, name) =>
			countOf(`pair ${address} ${name}`) >= mostOfPair || countOf(`address ${address}`) >= mostOfAddress,
		note: (address, name) => {
			add(`address ${address}`)
			add(`pair ${address} ${name}`)
		},
	}
}
