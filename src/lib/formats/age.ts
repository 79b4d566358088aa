// age's format (age-encryption.org/v1), as far as it can be read without a key: what a recipient and an identity look
// like, the header of an encrypted file, and how long a file of a given content is.

/** A file, a recipient or an identity that is none, in words for the operator. Never holds what was read. */
export class AgeError extends Error {
	override name = "AgeError"
}

type Problem = { message: string; fix: string }

const makeOne = "make a pair with `age-keygen -o key.txt`, and write its public key, age1…"

/** What is wrong with a recipient, or undefined. Only X25519 ones: those every `age` can open. */
export function recipientProblem(text: string): Problem | undefined {
	if (/^AGE-SECRET-KEY-/i.test(text))
		return {
			message: "is a private key, and belongs in no configuration",
			fix: "write its public half, age1…",
		}
	if (/^(ssh-|ecdsa-|sk-)/.test(text)) return { message: "is an SSH key, which can't be used", fix: makeOne }
	if (/^age1(pq|tag|tagpq)1/.test(text) || /^age1[a-z0-9]+1[a-z0-9]{58,}$/.test(text))
		return { message: "is of a kind that Debian's age can't open", fix: makeOne }
	if (keyBytes(text, "age") === 32) return undefined
	return { message: "is not an age recipient: mistyped, or cut off", fix: makeOne }
}

/**
 * The identities in a text: one, or a file as `age-keygen` writes it, with comments.
 * @throws {AgeError} that says what is wrong in which line, without showing it
 */
export function readIdentities(text: string): string[] {
	if (text.startsWith("age-encryption.org/") || text.startsWith(armorMark))
		throw new AgeError("is encrypted itself: open it with `age -d` first")
	const found: string[] = []
	for (const [index, line] of text.split(/\r?\n/).entries()) {
		const written = line.trim()
		if (written === "" || written.startsWith("#")) continue
		if (!written.startsWith("AGE-SECRET-KEY-1") || keyBytes(written.toLowerCase(), "age-secret-key-") !== 32)
			throw new AgeError(`is not an age identity (line ${index + 1}): AGE-SECRET-KEY-1 and 58 characters`)
		found.push(written)
	}
	if (found.length === 0) throw new AgeError("holds no age identity")
	return found
}

const alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"

/** Bech32, in lower case: how many whole bytes the key has, or undefined when its checksum or prefix is wrong. */
function keyBytes(text: string, prefix: string): number | undefined {
	if (!text.startsWith(`${prefix}1`)) return undefined
	const words = [...text.slice(prefix.length + 1)].map((letter) => alphabet.indexOf(letter))
	if (words.length < 6 || words.includes(-1)) return undefined
	const codes = [...prefix].map((letter) => letter.charCodeAt(0))
	const expanded = [...codes.map((code) => code >> 5), 0, ...codes.map((code) => code & 31), ...words]
	if (checksum(expanded) !== 1) return undefined
	return Math.floor(((words.length - 6) * 5) / 8)
}

function checksum(values: readonly number[]): number {
	const generators = [0x3b6a57b2, 0x26508e6d, 0x1ea119fa, 0x3d4233dd, 0x2a1462b3]
	let sum = 1
	for (const value of values) {
		const top = sum >> 25
		sum = ((sum & 0x1ffffff) << 5) ^ value
		for (const [bit, generator] of generators.entries()) if ((top >> bit) & 1) sum ^= generator
	}
	return sum
}

/** How much of a file's beginning `readAgeHeader` wants: a recipient takes about 100 bytes. */
export const longestHeaderBytes = 64 * 1024

const versionLine = "age-encryption.org/v1"
const armorMark = "-----BEGIN AGE ENCRYPTED FILE-----"

/**
 * Reads the header at the beginning of an encrypted file.
 * @returns its length, and how many X25519 recipients it has. Stanzas of kinds that nobody knows are passed over: age
 *   wants that
 * @throws {AgeError} for what is none, is meant for a passphrase or for nobody, or is in text form
 */
export function readAgeHeader(start: Uint8Array): { headerBytes: number; recipients: number } {
	const text = Buffer.from(start.subarray(0, longestHeaderBytes)).toString("latin1")
	if (text.startsWith(armorMark)) throw new AgeError("it is armored: `age -d` opens it by hand")
	if (!text.startsWith(`${versionLine}\n`)) throw new AgeError("it is not a file of age's")
	let at = versionLine.length + 1
	const line = () => {
		const end = text.indexOf("\n", at)
		if (end === -1) throw new AgeError("its header has no end")
		const found = text.slice(at, end)
		at = end + 1
		if (!/^[\x20-\x7e]*$/.test(found)) throw new AgeError("its header is damaged")
		return found
	}
	let recipients = 0
	for (;;) {
		const first = line()
		if (/^--- [A-Za-z0-9+/]{43}$/.test(first)) break
		const [, kind] = /^-> (\S+)( \S+)*$/.exec(first) ?? []
		if (kind === undefined) throw new AgeError("its header is damaged")
		if (kind === "scrypt") throw new AgeError("it is encrypted with a passphrase, and not for a recipient")
		let body: string
		do {
			body = line()
			if (!/^[A-Za-z0-9+/]{0,64}$/.test(body)) throw new AgeError("its header is damaged")
		} while (body.length === 64)
		if (kind === "X25519") recipients++
	}
	if (recipients === 0) throw new AgeError("it is encrypted for nobody whose key comfyume can use")
	return { headerBytes: at, recipients }
}

const nonceBytes = 16
const tagBytes = 16
const chunkBytes = 64 * 1024

/** The size of an encrypted file: header, nonce, and 16 bytes more for every begun 64 KiB of content. */
export const encryptedBytes = (headerBytes: number, contentBytes: number) =>
	headerBytes + nonceBytes + contentBytes + tagBytes * Math.max(1, Math.ceil(contentBytes / chunkBytes))

/** True when a file of this size may be whole: no last chunk is shorter than its tag and one byte. */
export function isWholeSize(headerBytes: number, sizeBytes: number): boolean {
	const payload = sizeBytes - headerBytes - nonceBytes
	const last = payload % (chunkBytes + tagBytes)
	return payload > tagBytes && (last === 0 || last > tagBytes)
}
