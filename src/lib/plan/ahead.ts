// Checks before their turn. Where nothing has to be done, a plan's time is that of its checks, and these only read: some
// are asked side by side, and each finding is used when its step's turn comes. That is the same as asking in turn as
// long as nothing was changed in between: before the first change all that are under way are waited for, and what they
// found is forgotten.
import type { Finding, Report, Step } from "./step.ts"

/** Enough to keep two cores and a network busy; more would only be thrown away where something is to be done. */
const mostAtOnce = 16

export type Ahead = {
	/** What its check has found, having told all that it tells; undefined when it must be asked now. */
	take(step: Step, report: Report): Promise<Finding> | undefined
	/** Resolves when no check is under way: something is about to be changed. */
	forget(): Promise<void>
}

/** For a plan that doesn't want it. */
export const inTurnOnly: Ahead = { take: () => undefined, forget: async () => {} }

/**
 * Begins the checks of the first steps at once, and others as those end: up to the first that finds something to do,
 * since all behind it are to be asked again.
 */
export function checkAhead(steps: readonly Step[]): Ahead {
	type Asked = { finding: Promise<Finding>; told: ((report: Report) => void)[] }
	const asked = new Map<string, Asked>()
	let waiting = [...steps]
	let forgotten = false
	const underWay = new Set<Promise<unknown>>()
	const begin = () => {
		while (underWay.size < mostAtOnce) {
			const step = waiting.shift()
			if (step === undefined) return
			const told: Asked["told"] = []
			const finding = (async () => step.check(remembering(told)))()
			asked.set(step.id, { finding, told })
			const end = finding
				.then(
					({ state }) => state === "satisfied",
					() => false,
				)
				.then((isRight) => {
					underWay.delete(end)
					if (!isRight) waiting = []
					begin()
				})
			underWay.add(end)
		}
	}
	begin()
	return {
		take: (step, report) => {
			const known = forgotten ? undefined : asked.get(step.id)
			if (known === undefined) {
				waiting = waiting.filter(({ id }) => id !== step.id)
				return undefined
			}
			asked.delete(step.id)
			return known.finding.finally(() => {
				for (const tell of known.told) tell(report)
			})
		},
		forget: async () => {
			forgotten = true
			waiting = []
			await Promise.all(underWay)
		},
	}
}

/** Keeps what a check tells for the moment at which its step is shown. */
function remembering(told: ((report: Report) => void)[]): Report {
	return new Proxy({} as Report, {
		get:
			(_, name: keyof Report) =>
			(...words: [never]) =>
				void told.push((report) => report[name](...words)),
	})
}
