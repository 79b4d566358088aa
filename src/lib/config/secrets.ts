// Secrets: which there are, where they are looked for, and how they travel to a remote run.
import { closeSync, fstatSync, openSync, readFileSync } from "node:fs"
import { dirname, join, resolve } from "node:path"
import { z } from "zod"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { closest } from "../formats/closest.ts"
import { readEnvFile } from "../formats/env-file.ts"
import { Secret } from "../secret.ts"
import type { Environment } from "./environment.ts"

/** Every secret that comfyume knows, by the name of its environment variable, and what it opens. */
export const secretMeanings = {
	R2_ACCESS_KEY_ID: "the object store's access key",
	R2_SECRET_ACCESS_KEY: "the object store's secret key",
	CLOUDFLARE_API_TOKEN: "showing the lock of R2's buckets (Workers R2 Storage: Read)",
	GH_TOKEN: "reading the git repositories (scope: contents, read only)",
	AGE_IDENTITY: "opening encrypted backups: for a restore or a drill, and never on a server",
	HF_TOKEN: "fetching gated models from Hugging Face (read only)",
	TAILSCALE_AUTH_KEY: "joining the tailnet where no identity comes back (testing, staging)",
	TAILSCALE_API_KEY: "asking the tailnet whether another machine has the identity",
	HEALTHCHECKS_PING_KEY: "telling healthchecks how runs ended (the project's ping key)",
	NTFY_TOPIC: "the ntfy topic that failures are told to; who knows it reads them",
	UBUNTU_PRO_TOKEN: "attaching a machine to Ubuntu Pro",
} as const

export type SecretName = keyof typeof secretMeanings
export const secretNames = Object.keys(secretMeanings) as SecretName[]

export type Secrets = {
	find(name: SecretName): Secret | undefined
	/**
	 * @param forWhat what can't be done without it, as in "reading the bucket comfyume-cache-backups"
	 * @throws OperatorError with exit code 2 that says where it was looked for and what to do
	 */
	need(name: SecretName, forWhat: string): Secret
	/** Where it was found, in the operator's words; undefined when it is missing. */
	origin(name: SecretName): string | undefined
	/** Every value that was read, for redaction; also those that the file holds under names of others. */
	all(): readonly Secret[]
	/** What looked odd in the file: never a value. */
	notes: readonly string[]
	/** Those of the named secrets that were found, as one text for a session's stdin. Only the session reveals it. */
	toPayload(wanted: readonly SecretName[]): Secret
}

export type SecretSources = {
	/** `--secrets FILE` */
	file?: string | undefined
	variables: Readonly<Record<string, string | undefined>>
	workingDirectory: string
	/** `secrets.env` beside it is looked at. */
	configurationPath?: string
	/** The kernel keyring, where there is one. */
	readKeyring?: (name: SecretName) => Promise<Secret | undefined>
	/** Where the machine's own secrets lie; `/etc/comfyume`. */
	systemDirectory?: string
	/** Who must own the file: this process's user. */
	userId?: number | undefined
}

type Found = { secret: Secret; origin: string }

/**
 * Looks for every known secret: environment variable, then env file (`--secrets`, `$COMFYUME_SECRETS`, `secrets.env`
 * beside the configuration, `/etc/comfyume/secrets.env`: the first that there is), then kernel keyring.
 * @throws OperatorError with exit code 2 when the file is readable by others, not the user's own, or can't be read
 */
export async function loadSecrets(sources: SecretSources): Promise<Secrets> {
	const { variables, readKeyring } = sources
	const file = openSecretsFile(sources)
	const found = new Map<SecretName, Found>()
	for (const name of secretNames) {
		const value = variables[name]
		const fromFile = file.entries.get(name)
		if (value !== undefined && value !== "")
			found.set(name, { secret: new Secret(value), origin: `the environment variable ${name}` })
		else if (fromFile !== undefined) found.set(name, fromFile)
		else {
			const secret = await readKeyring?.(name)
			if (secret !== undefined) found.set(name, { secret, origin: "the kernel keyring" })
		}
	}
	const looked = [
		"the environment variable",
		...file.looked,
		...(readKeyring === undefined ? [] : ["the kernel keyring"]),
	]
	const others = [...file.entries.values()].map(({ secret }) => secret)
	return secretsOf(found, { looked, addTo: file.addTo, others, notes: file.notes })
}

const payloadSchema = z.strictObject({ version: z.literal(1), secrets: z.record(z.string(), z.string()) })

/**
 * The secrets that came in over a session.
 * @throws OperatorError with exit code 1: the two sides don't speak the same language; never shows the payload
 */
export function secretsFromPayload(payload: Secret): Secrets {
	let values: Readonly<Record<string, string>>
	try {
		values = payloadSchema.parse(JSON.parse(payload.reveal())).secrets
	} catch {
		// Neither parser's message may be shown: both quote what they read.
		throw new OperatorError("the session's secrets can't be read", {
			exitCode: exitCodes.bug,
			hint: "run it again with the same release on both sides",
		})
	}
	const found = new Map<SecretName, Found>()
	for (const name of secretNames) {
		const value = values[name]
		if (value !== undefined) found.set(name, { secret: new Secret(value), origin: "the session" })
	}
	const others = Object.values(values).map((value) => new Secret(value))
	return secretsOf(found, {
		looked: ["the session that started this run"],
		addTo: undefined,
		others,
		notes: [],
	})
}

function secretsOf(
	found: ReadonlyMap<SecretName, Found>,
	{
		looked,
		addTo,
		others,
		notes,
	}: {
		looked: readonly string[]
		addTo: string | undefined
		others: readonly Secret[]
		notes: readonly string[]
	},
): Secrets {
	const find = (name: SecretName) => found.get(name)?.secret
	return {
		find,
		need: (name, forWhat) => {
			const secret = find(name)
			if (secret !== undefined) return secret
			throw new OperatorError(`${name} is missing, needed for ${forWhat}; looked in ${looked.join(", ")}`, {
				exitCode: exitCodes.usage,
				hint:
					addTo === undefined
						? `set ${name} where the run was started`
						: `add ${name}=… to ${addTo} (chmod 600), or export ${name}`,
			})
		},
		origin: (name) => found.get(name)?.origin,
		all: () => {
			const values = new Map([...found.values()].map(({ secret }) => [secret.reveal(), secret]))
			for (const secret of others) values.set(secret.reveal(), secret)
			return [...values.values()]
		},
		notes,
		toPayload: (wanted) => {
			const sent = [...found].filter(([name]) => wanted.includes(name))
			const secrets = Object.fromEntries(sent.map(([name, { secret }]) => [name, secret.reveal()]))
			return new Secret(JSON.stringify({ version: 1, secrets }))
		},
	}
}

type SecretsFile = {
	entries: ReadonlyMap<string, Found>
	looked: readonly string[]
	/** The file that a missing secret should be put into. */
	addTo: string
	notes: readonly string[]
}

function openSecretsFile(sources: SecretSources): SecretsFile {
	const { file, variables, workingDirectory, configurationPath } = sources
	const named = file ?? (variables.COMFYUME_SECRETS || undefined)
	if (named !== undefined) {
		const path = resolve(workingDirectory, named)
		const read = readSecretsFile(path, sources.userId)
		if (read === undefined)
			throw new OperatorError(`there is no file of secrets at ${path}`, {
				exitCode: exitCodes.usage,
				hint: `install -m 600 /dev/null ${path}, and add NAME=value lines`,
			})
		return { ...read, looked: [path], addTo: path }
	}
	const systemFile = join(sources.systemDirectory ?? "/etc/comfyume", "secrets.env")
	const beside = configurationPath === undefined ? undefined : join(dirname(configurationPath), "secrets.env")
	const candidates = [...new Set(beside === undefined ? [systemFile] : [beside, systemFile])]
	for (const path of candidates) {
		const read = readSecretsFile(path, sources.userId)
		if (read !== undefined) return { ...read, looked: [path], addTo: path }
	}
	const addTo = beside ?? systemFile
	return { entries: new Map(), looked: candidates.map((path) => `${path} (no such file)`), addTo, notes: [] }
}

/** Undefined when there is no such file. */
function readSecretsFile(
	path: string,
	userId: number | undefined = process.getuid?.(),
): Pick<SecretsFile, "entries" | "notes"> | undefined {
	let text: string
	try {
		const descriptor = openSync(path, "r")
		try {
			refuseOpenFile(path, fstatSync(descriptor), userId)
			text = readFileSync(descriptor, "utf8")
		} finally {
			closeSync(descriptor)
		}
	} catch (error) {
		if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return undefined
		if (error instanceof OperatorError) throw error
		const { message } = systemError(error, `reading the secrets in ${path}`)
		throw new OperatorError(message, { exitCode: exitCodes.usage, hint: `ls -l ${path}`, cause: error })
	}
	const { entries, problems, notes } = readEnvFile(text)
	const [problem] = problems
	if (problem !== undefined)
		throw new OperatorError(`${path}:${problem.line}: ${problem.message}`, {
			exitCode: exitCodes.usage,
			hint: problem.fix,
		})
	const given = entries.filter(({ value }) => value !== "")
	return {
		entries: new Map(
			given.map(({ name, value, line }) => [name, { secret: new Secret(value), origin: `${path}:${line}` }]),
		),
		notes: [
			...notes.map(({ line, message, fix }) => `${path}:${line}: ${message} (${fix})`),
			...given.flatMap(({ name, line }) => misspelt(name, `${path}:${line}`)),
		],
	}
}

function misspelt(name: string, where: string): string[] {
	if (secretNames.some((known) => known === name)) return []
	const meant = closest(name, secretNames)
	return meant === undefined
		? []
		: [`${where}: ${name} is not a secret comfyume knows (did you mean ${meant}?)`]
}

function refuseOpenFile(
	path: string,
	{ mode, uid }: { mode: number; uid: number },
	userId: number | undefined,
) {
	if ((mode & 0o077) !== 0)
		throw new OperatorError(`${path} can be read or written by others (mode ${(mode & 0o777).toString(8)})`, {
			exitCode: exitCodes.usage,
			hint: `chmod 600 ${path}`,
		})
	if (userId !== undefined && uid !== userId)
		throw new OperatorError(`${path} belongs to user ${uid}, and this is user ${userId}`, {
			exitCode: exitCodes.usage,
			hint: `chown ${userId} ${path} && chmod 600 ${path}`,
		})
}

/** The secrets without which an environment's backup or restore can't be whole, and what each is for. */
export function secretsNeededBy(environment: Environment): readonly { name: SecretName; forWhat: string }[] {
	const { objectStore, git, notifications } = environment
	const forBuckets = objectStore === undefined ? undefined : `the bucket ${objectStore.buckets.cache.bucket}`
	const remotes = [git.project.remote, git.scripts.remote].filter((remote) => /^https:/i.test(remote))
	return [
		...(forBuckets === undefined
			? []
			: [
					{ name: "R2_ACCESS_KEY_ID" as const, forWhat: forBuckets },
					{ name: "R2_SECRET_ACCESS_KEY" as const, forWhat: forBuckets },
				]),
		...(remotes[0] === undefined ? [] : [{ name: "GH_TOKEN" as const, forWhat: remotes.join(" and ") }]),
		...(notifications?.healthchecks === undefined
			? []
			: [{ name: "HEALTHCHECKS_PING_KEY" as const, forWhat: notifications.healthchecks.url }]),
		...(notifications?.ntfy === undefined
			? []
			: [{ name: "NTFY_TOPIC" as const, forWhat: notifications.ntfy.url }]),
	]
}
