// Password files as Apache and nginx read them, with bcrypt only. Written by generate-users, read by the auth gate.
import bcrypt from "bcryptjs"
import type { Secret } from "../secret.ts"

const cost = 10
const linePattern = /^([a-z][a-z0-9_-]{0,31}):(\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53})$/

/** bcrypt looks at 72 bytes and no more: what is longer would match by its beginning. */
export const mostPasswordBytes = 72

/** Name -> hash. */
export type PasswordHashes = ReadonlyMap<string, string>

/**
 * Reads a password file. Pure.
 * @returns the hashes, and the numbers of the lines that are something else; of a name that stands twice, the first
 * counts, as for nginx and Apache
 */
export function readHtpasswd(text: string): { hashes: PasswordHashes; badLines: readonly number[] } {
	const hashes = new Map<string, string>()
	const badLines: number[] = []
	for (const [index, raw] of text.split("\n").entries()) {
		const line = raw.replace(/\r$/, "")
		if (line === "" || line.startsWith("#")) continue
		const [, name, hash] = linePattern.exec(line) ?? []
		if (name === undefined || hash === undefined || hashes.has(name)) badLines.push(index + 1)
		else hashes.set(name, hash)
	}
	return { hashes, badLines }
}

/** The file's text, in the order given. Pure. */
export const renderHtpasswd = (hashes: PasswordHashes): string =>
	[...hashes].map(([name, hash]) => `${name}:${hash}\n`).join("")

/** A new hash, in the form that Apache writes: `$2y$`, cost 10. Takes some 60 ms. */
export async function hashPassword(password: Secret): Promise<string> {
	const hash = await bcrypt.hash(password.reveal(), cost)
	// The same algorithm: Apache and nginx's crypt() know it by this letter.
	return hash.replace(/^\$2b\$/, "$2y$")
}

/** Whether the password is the hash's. Takes as long for a wrong one. */
export const isPassword = (password: Secret, hash: string): Promise<boolean> =>
	Buffer.byteLength(password.reveal()) > mostPasswordBytes
		? Promise.resolve(false)
		: bcrypt.compare(password.reveal(), hash)

/** Whether a hash is of the kind that `hashPassword` makes. */
export const isCurrentHash = (hash: string): boolean => hash.startsWith(`$2y$${cost}$`)
