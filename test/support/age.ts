// Keys for encrypted backups, and encrypted files that are wrong in one way each.
import { Encrypter, generateX25519Identity, identityToRecipient } from "age-encryption"

export type AgeKey = { identity: string; recipient: string }

export async function makeAgeKey(): Promise<AgeKey> {
	const identity = await generateX25519Identity()
	return { identity, recipient: await identityToRecipient(identity) }
}

export const recipientOf = (identity: string): Promise<string> => identityToRecipient(identity)

export async function encryptedFor(content: Uint8Array, ...recipients: string[]): Promise<Buffer> {
	const encrypter = new Encrypter()
	for (const recipient of recipients) encrypter.addRecipient(recipient)
	return Buffer.from(await encrypter.encrypt(content))
}

/** Where the header ends and the nonce begins. */
export const headerEnd = (encrypted: Buffer) => encrypted.indexOf("\n", encrypted.indexOf("\n--- ") + 1) + 1
