// Comparisons of passwords with their hashes that were made before: bcrypt takes some 60 ms for each, on purpose. What is
// kept is a digest of password and hash together, in a file that only root reads; it lies beside the passwords
// themselves, which root reads as well, and nowhere that a container sees.
import { createHash } from "node:crypto"
import { stat } from "node:fs/promises"
import { userInfo } from "node:os"
import { dirname } from "node:path"
import type { LocalHost } from "../host/local.ts"
import type { Secret } from "../secret.ts"

const file = "/var/lib/comfyume/digests/passwords"

/** Digests of what was found to fit, one per line. */
export type Compared = ReadonlySet<string>

/** One pair of password and hash. The hash brings its own salt. */
export const comparisonOf = (password: Secret, hash: string): string =>
	createHash("sha256").update(`${hash}\n${password.reveal()}`).digest("hex")

/** What an earlier run has found; nothing where there is no such file, or where others could have written it. */
export async function readCompared(host: LocalHost): Promise<Compared> {
	const facts = await stat(host.path(file)).catch(() => undefined)
	if (facts === undefined || facts.uid !== userInfo().uid || (facts.mode & 0o077) !== 0) return new Set()
	const text = (await host.read(file))?.toString() ?? ""
	return new Set(text.split("\n").filter((line) => /^[0-9a-f]{64}$/.test(line)))
}

/** Keeps these and no others: passwords come and go. A run that only looks keeps nothing, and neither does a full disk. */
export async function keepCompared(
	host: LocalHost,
	{ known, compared }: { known: Compared; compared: Compared },
): Promise<void> {
	if (known.size === compared.size && [...compared].every((digest) => known.has(digest))) return
	try {
		await host.files.makeDirectory(dirname(file), 0o700)
		await host.write(file, [...compared].map((digest) => `${digest}\n`).join(""), { mode: 0o600 })
	} catch {
		// The next run compares again: that takes its time, and is right all the same.
	}
}
