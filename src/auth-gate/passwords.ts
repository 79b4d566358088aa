// Right or wrong? bcrypt takes 60 ms a time, so a right answer is kept for a while, and no flood gets at the processor.
import { createHmac, randomBytes } from "node:crypto"
import { readFile, stat } from "node:fs/promises"
import { isPassword, type PasswordHashes, readHtpasswd } from "../lib/formats/htpasswd.ts"
import { Secret } from "../lib/secret.ts"
import { countFailures } from "./failures.ts"

// Of nobody: for a name that doesn't exist, so that it takes as long as one that does.
const nobodysHash = "$2y$10$CwTycUXWue0Thq9StjUM0uJ8Y6wEhIY4D0m8fV9xWJ0oSzmbT8yCW"
const keptMs = 600_000
const mostKept = 2000
const mostAtOnce = 2
const mostWaiting = 64
const lookAgainMs = 500

export type Answer = "right" | "wrong" | "slow"

export type Passwords = {
	/** The hashes as they stand in the file now; none when it can't be read. */
	current(): Promise<PasswordHashes>
	/** `slow`: too many wrong ones lately, or too many at once. */
	check(name: string, password: Secret, address: string): Promise<Answer>
	/** Why not everybody can be let in; undefined when all is well. */
	problem(): Promise<string | undefined>
}

/**
 * Keeps a password file in sight: a new one counts within half a second.
 * @param now in milliseconds
 */
export function openPasswords(file: string, now: () => number): Passwords {
	// Keys of the kept answers tell nothing of the passwords, even to who reads this process's memory later.
	const keyOfAnswers = randomBytes(32)
	const kept = new Map<string, number>()
	const asked = new Map<string, Promise<boolean>>()
	const failures = countFailures(now)
	const turns = takeTurns(mostAtOnce, mostWaiting)
	let seen = { stamp: "", at: Number.NEGATIVE_INFINITY, hashes: new Map() as PasswordHashes, problem: "" }
	let reading: Promise<void> | undefined

	async function look(): Promise<void> {
		try {
			const { mtimeMs, size, ino } = await stat(file)
			const stamp = `${mtimeMs} ${size} ${ino}`
			if (stamp === seen.stamp) {
				seen.at = now()
				return
			}
			const { hashes, badLines } = readHtpasswd(await readFile(file, "utf8"))
			const problem =
				hashes.size === 0
					? "the password file is empty"
					: badLines.length > 0
						? `lines of the password file are bad: ${badLines.join(", ")}`
						: ""
			seen = { stamp, at: now(), hashes, problem }
		} catch {
			seen = { stamp: "", at: now(), hashes: new Map(), problem: "the password file can't be read" }
		}
	}

	async function current(): Promise<PasswordHashes> {
		if (now() - seen.at > lookAgainMs) {
			reading ??= look().finally(() => {
				reading = undefined
			})
			await reading
		}
		return seen.hashes
	}

	async function check(name: string, password: Secret, address: string): Promise<Answer> {
		const hash = (await current()).get(name)
		const key = createHmac("sha256", keyOfAnswers)
			.update(JSON.stringify([name, password.reveal(), hash ?? ""]))
			.digest("base64")
		const until = kept.get(key)
		if (until !== undefined && until > now()) return "right"
		if (failures.isTooMany(address, name)) return "slow"
		let asking = asked.get(key)
		if (asking === undefined) {
			const turn = turns(() => isPassword(password, hash ?? nobodysHash))
			if (turn === undefined) return "slow"
			asking = turn
				.then((is) => {
					if (!is || hash === undefined) {
						failures.note(address, name)
						return false
					}
					kept.delete(key)
					kept.set(key, now() + keptMs)
					if (kept.size > mostKept) kept.delete(kept.keys().next().value ?? "")
					return true
				})
				.finally(() => asked.delete(key))
			// A page's thirty requests with the same password are one question.
			asked.set(key, asking)
		}
		return (await asking) ? "right" : "wrong"
	}

	return {
		current,
		check,
		problem: async () => {
			await current()
			return seen.problem === "" ? undefined : seen.problem
		},
	}
}

/** Runs few things at once; undefined when too many wait already. */
function takeTurns(atOnce: number, waiting: number) {
	let running = 0
	const queue: (() => void)[] = []
	return <T>(work: () => Promise<T>): Promise<T> | undefined => {
		if (queue.length >= waiting) return undefined
		const turn = new Promise<void>((resolve) => {
			if (running < atOnce) resolve()
			else queue.push(resolve)
		})
		if (running < atOnce) running += 1
		return turn.then(work).finally(() => {
			const next = queue.shift()
			if (next === undefined) running -= 1
			else next()
		})
	}
}

/** Name and password of a `Basic` header; undefined when it is none. */
export function readBasic(header: string): { name: string; password: Secret } | undefined {
	const encoded = /^basic +([A-Za-z0-9+/=]{1,400})$/i.exec(header)?.[1]
	if (encoded === undefined) return undefined
	const text = Buffer.from(encoded, "base64").toString("utf8")
	const colon = text.indexOf(":")
	if (colon < 1 || text.includes("\0")) return undefined
	return { name: text.slice(0, colon), password: new Secret(text.slice(colon + 1)) }
}
