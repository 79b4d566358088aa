// A store that is listed once in a run: every artifact asks for its own part of the same listing.
import type { HealableStore, ObjectHead, ObjectStore } from "./object-store.ts"

/**
 * The same store, which remembers its listing below a prefix until something is put or set aside by this run. What
 * others put there meanwhile isn't seen.
 * @param below ends with `/`
 */
export function listedOnce<Store extends ObjectStore | HealableStore>(store: Store, below: string): Store {
	let listing: Promise<readonly ObjectHead[]> | undefined
	const listAll = async () => {
		const heads: ObjectHead[] = []
		for await (const head of store.list(below)) heads.push(head)
		return heads
	}
	const changing =
		<Args extends unknown[], Result>(change: (...args: Args) => Promise<Result>) =>
		async (...args: Args): Promise<Result> => {
			try {
				return await change(...args)
			} finally {
				listing = undefined
			}
		}
	return {
		...store,
		async *list(prefix: string) {
			if (!prefix.startsWith(below)) {
				yield* store.list(prefix)
				return
			}
			const asked = listing ?? listAll()
			listing = asked
			try {
				for (const head of await asked) if (head.key.startsWith(prefix)) yield head
			} catch (error) {
				if (listing === asked) listing = undefined
				throw error
			}
		},
		put: changing(store.put.bind(store)),
		...("setAside" in store ? { setAside: changing(store.setAside.bind(store)) } : {}),
	}
}
