// Who uses the workshop. A user is a number from 1 to 999; all names, ports and directories follow from it.
import { exitCodes, OperatorError } from "../errors.ts"

/** Ascending, each once. */
export type Roster = readonly number[]

export const mostUsers = 500

/** `user007` for 7. */
export const userId = (number: number): string => `user${String(number).padStart(3, "0")}`

/** 7 for `user007`; undefined when it is no user's id. */
export function userNumber(id: string): number | undefined {
	const digits = /^user(\d{3})$/.exec(id)?.[1]
	return digits === undefined || Number(digits) === 0 || Number(digits) > mostUsers
		? undefined
		: Number(digits)
}

export type RosterChange = {
	/** How many there must be; only upwards: the lowest free numbers are taken. */
	count?: number | undefined
	add?: readonly string[]
	remove?: readonly string[]
}

/**
 * The roster after a change. Pure.
 * @throws {OperatorError} with exit code 2 for an id that is none, and for a count that would remove somebody unnamed
 */
export function changeRoster(roster: Roster, { count, add = [], remove = [] }: RosterChange): Roster {
	const numbers = new Set(roster)
	for (const id of remove) {
		if (!numbers.delete(numberOf(id)))
			throw usage(`${id} is not in the roster`, `there are ${describeRoster(roster)}`)
	}
	for (const id of add) {
		if (remove.includes(id)) throw usage(`${id} is both added and removed`, "name it once")
		numbers.add(numberOf(id))
	}
	if (count !== undefined) {
		if (!Number.isInteger(count) || count < 1 || count > mostUsers)
			throw usage(`${count} users can't be: from 1 to ${mostUsers}`, "comfyume generate-users --count 20")
		if (count < numbers.size) {
			const last = [...numbers].sort(ascending).slice(count).map(userId)
			throw usage(
				`there are ${numbers.size} users, and --count ${count} would remove some`,
				`name them: ${last.map((id) => `--remove ${id}`).join(" ")}`,
			)
		}
		for (let number = 1; numbers.size < count; number++) numbers.add(number)
	}
	if (numbers.size === 0) throw usage("nobody would be left", "keep one user")
	return [...numbers].sort(ascending)
}

/** `user001–user003, user005`. */
export function describeRoster(roster: Roster): string {
	const runs: [number, number][] = []
	for (const number of roster) {
		const run = runs.at(-1)
		if (run !== undefined && run[1] === number - 1) run[1] = number
		else runs.push([number, number])
	}
	return runs.map(([from, to]) => (from === to ? userId(from) : `${userId(from)}–${userId(to)}`)).join(", ")
}

function numberOf(id: string): number {
	const number = userNumber(id)
	if (number === undefined)
		throw usage(`${id} is not a user's id`, `from ${userId(1)} to ${userId(mostUsers)}`)
	return number
}

const ascending = (one: number, other: number) => one - other

const usage = (message: string, hint: string) =>
	new OperatorError(message, { exitCode: exitCodes.usage, hint })
