// Which texts are keys. The same rules for all stores, so that what one holds every other can take.
import { exitCodes, OperatorError } from "../errors.ts"

// 1024 bytes is S3's limit; 255 is what a file system takes for one name, less what a partial's name adds.
const longestKeyBytes = 1024
const longestPartBytes = 220

const partialName = /^\..*\.partial$/
const setAsideName = /\.bad-\d{8}T\d{6}Z(?:-\d+)?$/

/**
 * The file that is locked below an environment's snapshots on the share, and beside the models while one is put right:
 * two hosts of one share don't do it both.
 */
export const lockName = ".comfyume.lock"

/** What a sidecar or a record is called from the beginning of its removal to its end. */
export const removingEnding = ".removing"

/**
 * True for the names that a store keeps for itself: uploads and removals under way, copies set aside, and locks. `list`
 * passes over them.
 */
export function isReservedName(name: string): boolean {
	return (
		name === lockName ||
		partialName.test(name) ||
		setAsideName.test(name) ||
		[".json", ".tar.zst"].some((ending) => name.endsWith(`${ending}${removingEnding}`))
	)
}

/** What is wrong with a key, or undefined. A good key is a relative path that can't leave its store. */
export function problemOfKey(key: string): string | undefined {
	if (key === "") return "it is empty"
	if (key.includes("\0")) return "it holds a NUL byte"
	if (key.startsWith("/")) return "it is absolute"
	if (!key.isWellFormed()) return "it is not valid Unicode"
	if (Buffer.byteLength(key) > longestKeyBytes) return `it is longer than ${longestKeyBytes} bytes`
	for (const part of key.split("/")) {
		if (part === "") return "it has an empty part"
		if (part === "." || part === "..") return `it has a part "${part}"`
		if (Buffer.byteLength(part) > longestPartBytes) return `a part is longer than ${longestPartBytes} bytes`
	}
	return undefined
}

/** @throws {OperatorError} `refusedByGuard` for what is no key. */
export function checkKey(key: string, store: string): void {
	const problem = problemOfKey(key)
	if (problem !== undefined) throw badKey(`${JSON.stringify(key)} can't be a key in ${store}: ${problem}`)
}

/** As `checkKey`, and refuses the names that stores keep for themselves. */
export function checkNewKey(key: string, store: string): void {
	checkKey(key, store)
	if (isReservedName(key.slice(key.lastIndexOf("/") + 1)))
		throw badKey(
			`${key} can't be put into ${store}: such names are kept for partial and damaged copies and for locks`,
		)
}

/** @throws {OperatorError} for a prefix that neither is empty nor is a key followed by `/`. */
export function checkPrefix(prefix: string, store: string): void {
	if (prefix === "") return
	const problem = prefix.endsWith("/") ? problemOfKey(prefix.slice(0, -1)) : "it does not end with /"
	if (problem !== undefined)
		throw badKey(`${JSON.stringify(prefix)} can't be a prefix in ${store}: ${problem}`)
}

const badKey = (message: string) => new OperatorError(message, { exitCode: exitCodes.refusedByGuard })
