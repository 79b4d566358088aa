// Archives that only the holder of a key can open: age, for the recipients of the configuration. What is encrypted here
// `age -d` opens, and the other way round. A host needs no key to encrypt, to copy or to compare; only a restore does.
import { createHash } from "node:crypto"
import { createReadStream } from "node:fs"
import { open, rm } from "node:fs/promises"
import type { Identity } from "age-encryption"
import { exitCodes, messageOf, OperatorError, systemError } from "../errors.ts"
import {
	AgeError,
	encryptedBytes,
	isWholeSize,
	longestHeaderBytes,
	readAgeHeader,
	readIdentities,
} from "../formats/age.ts"
import type { Secret } from "../secret.ts"
import type { ArchiveSidecar } from "./snapshot.ts"

/** The key that is there doesn't open it, or none is there: nothing is wrong with the archive, and no other will do. */
export class IdentityError extends OperatorError {
	override name = "IdentityError"
}

type Facts = { digest: string; sizeBytes: number }

const bufferBytes = 1024 * 1024

/**
 * Encrypts a file. What stands on the disk afterwards is read back whole, with the key that this one file has been
 * encrypted with and that is then forgotten: the recipients' own keys are not on this machine.
 * @param work.from path on this machine
 * @param work.digest of its content, as it was when it was judged
 * @param work.to path on this machine; must not exist; only its owner can read it
 * @returns digest and size of the encrypted file
 * @throws {OperatorError} when the encrypted file doesn't hold that content
 */
export async function encryptFile(work: {
	from: string
	digest: string
	to: string
	recipients: readonly string[]
	signal: AbortSignal
}): Promise<Facts> {
	const { Encrypter } = await import("age-encryption")
	const { from, to, recipients, signal } = work
	let fileKey: Uint8Array | undefined
	const encrypter = new Encrypter()
	for (const recipient of recipients) encrypter.addRecipient(recipient)
	encrypter.addRecipient({
		wrapFileKey: (key) => {
			fileKey = key.slice()
			return []
		},
	})
	const written = counter()
	await reading(from, async (file) => {
		const encrypted = await encrypter.encrypt(ReadableStream.from(file))
		await writeNew(to, written.passing(encrypted), signal)
	}).catch((error) => {
		throw systemError(error, `encrypting to ${to}`)
	})
	const content = counter()
	const stored = counter()
	await reading(to, async (file) => {
		const forgotten = { unwrapFileKey: () => fileKey ?? null }
		for await (const _ of content.passing(await decrypt(stored.passing(file), forgotten)))
			signal.throwIfAborted()
	})
	const { headerBytes } = await checkEncrypted(to, stored.facts().sizeBytes, recipients.length)
	if (
		content.facts().digest !== work.digest ||
		stored.facts().digest !== written.facts().digest ||
		stored.facts().sizeBytes !== encryptedBytes(headerBytes, content.facts().sizeBytes)
	)
		throw new OperatorError("the encrypted archive doesn't hold what was encrypted", { hint: "dmesg | tail" })
	return stored.facts()
}

/** A short text, encrypted; in base64. */
export async function encryptText(text: string, recipients: readonly string[]): Promise<string> {
	const { Encrypter } = await import("age-encryption")
	const encrypter = new Encrypter()
	for (const recipient of recipients) encrypter.addRecipient(recipient)
	return Buffer.from(await encrypter.encrypt(text)).toString("base64")
}

/**
 * What can be said of an encrypted file without a key: it begins as one, for so many recipients, and its size can be one.
 * @param file path on this machine
 * @throws {OperatorError} (3) saying what is wrong with it
 */
export async function checkEncrypted(
	file: string,
	sizeBytes: number,
	recipients: number,
): Promise<{ headerBytes: number }> {
	const header = await readHeader(file)
	if (header.recipients !== recipients)
		throw new OperatorError(
			`it is encrypted for ${header.recipients} recipients, its sidecar names ${recipients}`,
		)
	if (!isWholeSize(header.headerBytes, sizeBytes)) throw new OperatorError("it is cut off")
	return header
}

export type Key = {
	/** AGE_IDENTITY, as far as it is there. */
	identity: Secret | undefined
	/** The command to type once it is. */
	again: string
}

/**
 * Says no before anything is fetched.
 * @returns the identities; none for an archive that isn't encrypted
 * @throws {IdentityError} (6) when no identity is there, or it is that of none of the recipients; (2) when it is none
 */
export async function requireIdentity(
	{ artifact, takenAt, encryption }: ArchiveSidecar,
	{ identity, again }: Key,
): Promise<readonly string[]> {
	if (encryption === undefined) return []
	const { recipients } = encryption
	const whom = recipients.join(" or ")
	const what = `${artifact} of ${takenAt}`
	if (identity === undefined)
		throw new IdentityError(
			`${what} is encrypted for ${whom}, and there is no AGE_IDENTITY`,
			refused(`AGE_IDENTITY="$(cat key.txt)" ${again}   # the key's file, from its safe place`),
		)
	const identities = parseIdentity(identity)
	const { identityToRecipient } = await import("age-encryption")
	const mine = await Promise.all(identities.map((one) => identityToRecipient(one)))
	if (!mine.some((recipient) => recipients.includes(recipient)))
		throw new IdentityError(
			`${what} is encrypted for ${whom}, and AGE_IDENTITY is the key of ${mine.join(" and ")}`,
			refused("age-keygen -y key.txt   # says whose key a file holds"),
		)
	return identities
}

const refused = (hint: string) => ({ exitCode: exitCodes.refusedCredentials, hint })

function parseIdentity(identity: Secret): string[] {
	try {
		return readIdentities(identity.reveal())
	} catch (error) {
		// Not as its cause: what was read must not be shown by whatever prints it.
		throw new IdentityError(`AGE_IDENTITY ${messageOf(error)}`, {
			exitCode: exitCodes.usage,
			hint: "age-keygen -y key.txt   # accepts what comfyume accepts",
		})
	}
}

/**
 * Opens an encrypted archive whose digest has been proven.
 * @param files.from path on this machine
 * @param files.to path on this machine; must not exist; only its owner can read it. Gone when this throws
 * @throws {IdentityError} as `requireIdentity`
 * @throws {OperatorError} (3) when the file is none, is damaged, or is not for whom its sidecar says
 */
export async function openArchive(
	sidecar: ArchiveSidecar,
	key: Key,
	{ from, to, signal }: { from: string; to: string; signal: AbortSignal },
): Promise<void> {
	const identities = await requireIdentity(sidecar, key)
	await readHeader(from)
	try {
		await reading(from, async (file) => writeNew(to, await decrypt(file, ...identities), signal))
	} catch (error) {
		await rm(to, { force: true })
		signal.throwIfAborted()
		throw damaged(error)
	}
}

/** The digest of the tree that an archive must hold, as its sidecar says it. Throws as `openArchive`. */
export async function openTreeDigest(sidecar: ArchiveSidecar, key: Key): Promise<string | undefined> {
	const { encryption } = sidecar
	if (encryption === undefined) return sidecar.treeDigest
	const identities = await requireIdentity(sidecar, key)
	const sealed = Buffer.from(encryption.treeDigest, "base64")
	const pieces: Uint8Array[] = []
	try {
		readAgeHeader(sealed)
		for await (const piece of await decrypt([sealed], ...identities)) pieces.push(piece)
	} catch (error) {
		throw damaged(error)
	}
	return Buffer.concat(pieces).toString("utf8")
}

/** Closes the file whatever becomes of the work: the library leaves what it has begun to read. */
async function reading<T>(file: string, work: (stream: AsyncIterable<Uint8Array>) => Promise<T>): Promise<T> {
	const stream = createReadStream(file, { highWaterMark: bufferBytes })
	try {
		return await work(stream)
	} finally {
		stream.destroy()
	}
}

/** The file is there, and closed again, before this ends either way: what is removed then doesn't come back. */
async function writeNew(
	file: string,
	content: AsyncIterable<Uint8Array>,
	signal: AbortSignal,
): Promise<void> {
	const handle = await open(file, "wx", 0o600)
	try {
		for await (const chunk of content) {
			signal.throwIfAborted()
			await handle.appendFile(chunk)
		}
		await handle.sync()
	} finally {
		await handle.close()
	}
}

/** @throws {OperatorError} for a header that fits none of the identities, or is damaged */
async function decrypt(
	encrypted: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
	...identities: readonly (string | Identity)[]
): Promise<ReadableStream<Uint8Array>> {
	const { Decrypter } = await import("age-encryption")
	const decrypter = new Decrypter()
	for (const identity of identities) decrypter.addIdentity(identity)
	try {
		return await decrypter.decrypt(ReadableStream.from(encrypted))
	} catch (error) {
		throw damaged(error)
	}
}

/** The library's words for the header, and its cipher's for the content. */
function damaged(error: unknown): OperatorError {
	if (error instanceof OperatorError) return error
	if (error instanceof AgeError) return new OperatorError(error.message)
	const said = messageOf(error)
	if (/^no identity matched/.test(said))
		return new OperatorError("its header is not for the recipients that its sidecar names", { cause: error })
	if (/invalid tag|tag doesn't match/.test(said))
		return new OperatorError("its encrypted content is damaged", { cause: error })
	// What is no base64 any more, and what its seal doesn't fit.
	if (/^Unknown letter|invalid header HMAC/.test(said))
		return new OperatorError("its header is damaged", { cause: error })
	return systemError(error, "decrypting it")
}

async function readHeader(file: string): Promise<{ headerBytes: number; recipients: number }> {
	const handle = await open(file, "r").catch((error) => {
		throw systemError(error, `reading ${file}`)
	})
	try {
		const { buffer, bytesRead } = await handle.read(
			Buffer.alloc(longestHeaderBytes),
			0,
			longestHeaderBytes,
			0,
		)
		return readAgeHeader(buffer.subarray(0, bytesRead))
	} catch (error) {
		throw error instanceof AgeError ? damaged(error) : systemError(error, `reading ${file}`)
	} finally {
		await handle.close()
	}
}

/** Hashes and counts what passes through it. */
function counter() {
	const hash = createHash("sha256")
	let sizeBytes = 0
	return {
		async *passing(stream: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
			for await (const chunk of stream) {
				hash.update(chunk)
				sizeBytes += chunk.length
				yield chunk
			}
		},
		facts: (): Facts => ({ digest: hash.copy().digest("hex"), sizeBytes }),
	}
}
