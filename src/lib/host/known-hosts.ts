// The `known_hosts` format of OpenSSH, read and written without a connection: whose key is whose, and whether the key
// on the wire is one of them. Everything here is pure; reading and replacing the file is the caller's business.
import { createHash, createHmac, timingSafeEqual } from "node:crypto"

/** One line of a `known_hosts` file that holds a key. */
export type KnownKey = {
	/** 1 is the first line. */
	line: number
	marker?: "revoked" | "cert-authority"
	/** The names as they stand in the file: patterns with commas, or one hashed name. */
	names: string
	/** For example `ssh-ed25519`. */
	type: string
	/** The public key as the wire carries it. */
	key: Buffer
}

/** Where a host is looked up: the name or address that is dialled, and its port. */
export type HostAddress = { address: string; port: number }

/**
 * Reads a `known_hosts` file. Comments, empty lines and lines that can't be read are passed over, as OpenSSH does:
 * a line that isn't understood accepts nobody.
 */
export function readKnownHosts(text: string): KnownKey[] {
	return text.split(/\r?\n/).flatMap((content, index) => {
		const words = content.trim().split(/[ \t]+/)
		if (words[0] === "" || words[0]?.startsWith("#")) return []
		const marker = words[0]?.startsWith("@") ? words.shift()?.slice(1) : undefined
		const [names, type, encoded] = words
		if (names === undefined || type === undefined || encoded === undefined) return []
		if (marker !== undefined && marker !== "revoked" && marker !== "cert-authority") return []
		const key = Buffer.from(encoded, "base64")
		if (keyTypeOf(key) !== type) return []
		return [{ line: index + 1, names, type, key, ...(marker === undefined ? {} : { marker }) }]
	})
}

/** The name under which OpenSSH files a host: the bare address at port 22, `[address]:port` elsewhere. */
function knownHostName({ address, port }: HostAddress): string {
	return port === 22 ? address.toLowerCase() : `[${address.toLowerCase()}]:${port}`
}

/** The lines that speak of this host: plain names, wildcards with exceptions, hashed names. */
export function keysOf(known: readonly KnownKey[], host: HostAddress): KnownKey[] {
	const name = knownHostName(host)
	return known.filter(({ names }) => (names.startsWith("|1|") ? hashedIs(names, name) : listHas(names, name)))
}

/** `SHA256:…` as `ssh-keygen -l` prints it: base64 without padding. */
export function fingerprintOf(key: Uint8Array): string {
	return `SHA256:${createHash("sha256").update(key).digest("base64").replace(/=+$/, "")}`
}

/** True for what can be a fingerprint: `SHA256:` and the 43 digits of base64 that 32 bytes take. */
export function isFingerprint(text: string): boolean {
	return /^SHA256:[A-Za-z0-9+/]{43}$/.test(text)
}

/** The type that a public key says of itself, as in `ssh-ed25519`; undefined when it isn't one. */
export function keyTypeOf(key: Buffer): string | undefined {
	if (key.length < 4) return undefined
	const length = key.readUInt32BE(0)
	if (length === 0 || length > 64 || key.length < 4 + length) return undefined
	return key.subarray(4, 4 + length).toString("latin1")
}

/** What is to be thought of the key that a host showed. */
export type Judgement =
	| { state: "known" }
	| { state: "unknown" }
	/** Other keys are on record for this host. */
	| { state: "changed"; recorded: KnownKey[] }
	| { state: "revoked"; recorded: KnownKey }

/**
 * Judges the key on the wire. A revoked key is refused whatever else speaks for it. Otherwise it is known when it
 * stands in `known_hosts` or when its fingerprint is one of `accepted`. A key of another type than the recorded ones
 * counts as changed: whoever sits in between would offer just that.
 */
export function judgeHostKey(
	key: Buffer,
	host: HostAddress,
	known: readonly KnownKey[],
	accepted: readonly string[],
): Judgement {
	const lines = keysOf(known, host).filter(({ marker }) => marker !== "cert-authority")
	const revoked = lines.find((line) => line.marker === "revoked" && line.key.equals(key))
	if (revoked !== undefined) return { state: "revoked", recorded: revoked }
	const recorded = lines.filter(({ marker }) => marker === undefined)
	if (recorded.some((line) => line.key.equals(key)) || accepted.includes(fingerprintOf(key)))
		return { state: "known" }
	return recorded.length === 0 ? { state: "unknown" } : { state: "changed", recorded }
}

/**
 * The file's text with one key added for a host. All other lines keep their place and their bytes.
 * @param replace removes the keys that stand there for this host; revoked keys and certificate authorities stay.
 * A line shared with other hosts keeps those.
 */
export function withKnownKey(text: string, host: HostAddress, key: Buffer, replace: boolean): string {
	const name = knownHostName(host)
	const type = keyTypeOf(key)
	if (type === undefined) throw new TypeError("this is no SSH public key")
	const lines = text === "" ? [] : text.replace(/\n$/, "").split("\n")
	const recorded = replace
		? keysOf(readKnownHosts(text), host).filter((line) => line.marker === undefined)
		: []
	const numbers = new Map(recorded.map((line) => [line.line, line]))
	const kept = lines.flatMap((content, index) => {
		const line = numbers.get(index + 1)
		if (line === undefined) return [content]
		const others = line.names.startsWith("|1|")
			? []
			: line.names.split(",").filter((other) => other.toLowerCase() !== name)
		// What is left may only be exceptions, which name nobody.
		if (others.every((other) => other.startsWith("!"))) return []
		// A wildcard that covers this host can't be taken out of; it gets an exception instead.
		const names = listHas(others.join(","), name) ? [...others, `!${name}`] : others
		return [content.replace(line.names, () => names.join(","))]
	})
	return `${[...kept, `${name} ${type} ${key.toString("base64")}`].join("\n")}\n`
}

// `|1|salt|digest`: HMAC-SHA1 of the name, keyed with the salt.
function hashedIs(hashed: string, name: string): boolean {
	const [, , salt, digest] = hashed.split("|")
	if (salt === undefined || digest === undefined) return false
	const expected = Buffer.from(digest, "base64")
	const actual = createHmac("sha1", Buffer.from(salt, "base64")).update(name).digest()
	return expected.length === actual.length && timingSafeEqual(expected, actual)
}

function listHas(names: string, name: string): boolean {
	let found = false
	for (const pattern of names.split(",")) {
		const excluded = pattern.startsWith("!")
		if (!matches(excluded ? pattern.slice(1) : pattern, name)) continue
		if (excluded) return false
		found = true
	}
	return found
}

function matches(pattern: string, name: string): boolean {
	const source = pattern
		.toLowerCase()
		.replaceAll(/[.+^${}()|[\]\\]/g, "\\$&")
		.replaceAll("*", ".*")
		.replaceAll("?", ".")
	return new RegExp(`^${source}$`).test(name)
}
