// Who signs in with what: the credentials file, the passwords in it, their hashes, and the sheet to hand out.
import { exitCodes, OperatorError } from "../errors.ts"
import { readEnvFile } from "../formats/env-file.ts"
import {
	hashPassword,
	isCurrentHash,
	isPassword,
	mostPasswordBytes,
	type PasswordHashes,
	readHtpasswd,
	renderHtpasswd,
} from "../formats/htpasswd.ts"
import { Secret } from "../secret.ts"
import { type Compared, comparisonOf } from "./compared.ts"
import { quoteForEnvFile } from "./env-render.ts"
import { type Roster, userId, userNumber } from "./roster.ts"

/** Name -> password, the admin's too. */
export type Credentials = ReadonlyMap<string, Secret>

const prefix = "USER_CREDENTIALS_"

/**
 * Reads a credentials file, or an env file of before that holds `USER_CREDENTIALS_USER001=user001:password`. Pure.
 * @param where the file's path, for messages
 * @throws {OperatorError} with exit code 2 for a line that can't be read or two readers would take differently, a name
 * that is not its variable's, or a password that no browser and no bcrypt takes whole
 */
export function readCredentials(
	text: string,
	{ where, adminName }: { where: string; adminName: string },
): Credentials {
	const { entries, problems, notes } = readEnvFile(text)
	const lines = new Set(entries.filter(({ name }) => name.startsWith(prefix)).map(({ line }) => line))
	const [bad] = [...problems, ...notes.filter(({ line }) => lines.has(line))]
	if (bad !== undefined) throw refused(`${where}:${bad.line}: ${bad.message}`, bad.fix)
	const found = new Map<string, Secret>()
	for (const { name, value, line } of entries) {
		if (!name.startsWith(prefix) || name === `${prefix}FORMAT`) continue
		const belongsTo = name === `${prefix}ADMIN` ? adminName : name.slice(prefix.length).toLowerCase()
		const colon = value.indexOf(":")
		const user = value.slice(0, Math.max(colon, 0))
		const password = value.slice(colon + 1)
		if (user !== belongsTo || (belongsTo !== adminName && userNumber(user) === undefined))
			throw refused(`${where}:${line}: ${name} is not ${belongsTo}:password`, `write ${name}=${belongsTo}:…`)
		const problem = passwordProblem(password)
		if (problem !== undefined)
			throw refused(
				`${where}:${line}: the password of ${user} ${problem}`,
				`comfyume generate-users --rotate ${user}, once the line is removed`,
			)
		found.set(user, new Secret(password))
	}
	return found
}

function passwordProblem(password: string): string | undefined {
	if (password === "") return "is empty"
	if (Buffer.byteLength(password) > mostPasswordBytes)
		return `is longer than the ${mostPasswordBytes} bytes that bcrypt looks at`
	// biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for.
	if (/['\u0000-\u001F\u007F]/.test(password)) return "holds a single quote, a line end or a control letter"
	return undefined
}

/** The users among the names, as a roster. */
export const rosterOf = (credentials: Credentials): Roster =>
	[...credentials.keys()].flatMap((name) => userNumber(name) ?? []).sort((one, other) => one - other)

/** The file's text: users by number, then the admin. The only place that passwords are written to, besides the sheet. */
export function renderCredentials(credentials: Credentials, roster: Roster, adminName: string): string {
	const line = (name: string, variable: string) => {
		const value = `${name}:${credentials.get(name)?.reveal() ?? ""}`
		return `${variable}=${quoteForEnvFile(variable, value)}\n`
	}
	return [
		"# Written by comfyume generate-users, which keeps the passwords that stand here. Mode 0600, never in git.\n",
		...roster.map((number) => line(userId(number), `${prefix}${userId(number).toUpperCase()}`)),
		line(adminName, `${prefix}ADMIN`),
	].join("")
}

export type Completed = { credentials: Credentials; made: readonly string[] }

/** Fills up what is missing, and replaces what is rotated. */
export function completeCredentials(
	existing: Credentials,
	{
		names,
		rotate,
		makePassword,
	}: { names: readonly string[]; rotate: readonly string[]; makePassword: () => string },
): Completed {
	const made: string[] = []
	const credentials = new Map<string, Secret>()
	for (const name of names) {
		const kept = rotate.includes(name) ? undefined : existing.get(name)
		if (kept === undefined) made.push(name)
		credentials.set(name, kept ?? new Secret(makePassword()))
	}
	return { credentials, made }
}

/**
 * The password file: a hash that is there and fits is kept, so that nothing differs where nothing changed. Every
 * password is then held against the text that will be written.
 * @param known what earlier runs found to fit; what this one found to, or took from there, is given back
 * @throws {OperatorError} with exit code 1 when one doesn't open its own door
 */
export async function makeHtpasswd(
	credentials: Credentials,
	existing: string,
	{ known, signal }: { known: Compared; signal: AbortSignal },
): Promise<{ text: string; hashed: number; compared: Compared }> {
	const compared = new Set<string>()
	const fits = async (password: Secret, hash: string) => {
		signal.throwIfAborted()
		const comparison = comparisonOf(password, hash)
		const isKnown = known.has(comparison) || compared.has(comparison)
		if (!isKnown && !(await isPassword(password, hash))) return false
		compared.add(comparison)
		return true
	}
	const before = readHtpasswd(existing).hashes
	const hashes = new Map<string, string>()
	let hashed = 0
	for (const [name, password] of credentials) {
		const old = before.get(name)
		if (old !== undefined && isCurrentHash(old) && (await fits(password, old))) hashes.set(name, old)
		else {
			hashes.set(name, await hashPassword(password))
			hashed += 1
		}
	}
	const text = renderHtpasswd(hashes)
	await proveLogins(credentials, readHtpasswd(text).hashes, fits)
	return { text, hashed, compared }
}

async function proveLogins(
	credentials: Credentials,
	hashes: PasswordHashes,
	fits: (password: Secret, hash: string) => Promise<boolean>,
): Promise<void> {
	for (const [name, password] of credentials) {
		const hash = hashes.get(name)
		if (hash !== undefined && (await fits(password, hash))) continue
		throw new OperatorError(`${name} could not sign in with the password file: nothing was written`, {
			exitCode: exitCodes.bug,
		})
	}
	if (hashes.size !== credentials.size)
		throw new OperatorError("the password file holds other users than the roster: nothing was written", {
			exitCode: exitCodes.bug,
		})
}

/** The sheet to hand out, as CSV: name, password, address, and a link that signs in by itself. */
export function renderCsv(credentials: Credentials, roster: Roster, origin: string): string {
	const rows = roster.map((number) => {
		const user = userId(number)
		const password = credentials.get(user)?.reveal() ?? ""
		const link = `https://${encode(user)}:${encode(password)}@${origin}/${user}/`
		return [user, password, `https://${origin}/${user}/`, link]
	})
	return [["user", "password", "address", "link"], ...rows]
		.map((row) => `${row.map(csvCell).join(",")}\r\n`)
		.join("")
}

// encodeURIComponent leaves these, which some programs that make links clickable cut off.
const encode = (text: string) =>
	encodeURIComponent(text).replace(
		/[!'()*]/g,
		(letter) => `%${letter.charCodeAt(0).toString(16).toUpperCase()}`,
	)

const csvCell = (text: string) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text)

const refused = (message: string, hint: string) =>
	new OperatorError(message, { exitCode: exitCodes.usage, hint })
