// Opens what a run needs: configuration, secrets, the host it works on, and the places that hold snapshots. Decides
// whether the work is done here or on a host elsewhere.
import { readFile, stat } from "node:fs/promises"
import { hostname, userInfo } from "node:os"
import { join } from "node:path"
import { z } from "zod"
import { probeSources, type Source, type SourceName, sourcesOf } from "../artifacts/source.ts"
import {
	chooseEnvironment,
	type LoadedConfiguration,
	loadConfiguration,
	parseConfiguration,
	readHostOwnEnvironment,
} from "../config/configuration.ts"
import type { BucketConfiguration, Environment, HostConfiguration } from "../config/environment.ts"
import { loadSecrets, type Secrets, secretsFromPayload } from "../config/secrets.ts"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { readSentinel, sentinelName } from "../formats/share-sentinel.ts"
import { quoteForShell } from "../host/command.ts"
import { readOnlyHost } from "../host/host.ts"
import { keyringReader } from "../host/keyring.ts"
import { type LocalHost, localHost } from "../host/local.ts"
import { mountAt } from "../host/mounts.ts"
import { isDirectory } from "../host/presence.ts"
import { openDigestCache } from "../models/digest-cache.ts"
import { Secret } from "../secret.ts"
import { directoryStore } from "../storage/directory.ts"
import { lockName } from "../storage/keys.ts"
import { listedOnce } from "../storage/listed-once.ts"
import type { ObjectStore } from "../storage/object-store.ts"
import { readOnlyStore } from "../storage/read-only.ts"
import { type ShareLock, shareLock } from "../storage/share-lock.ts"
import { type ShareRemover, shareRemover } from "../storage/share-remover.ts"
import type { Surroundings } from "../ui/surroundings.ts"
import type { StepContext } from "./context.ts"
import { openBuckets } from "./open-buckets.ts"

export type OpenOptions = {
	config?: string
	env?: string
	/** Which host of the environment; needed when it has several. */
	host?: string
	secrets?: string
	/** The operator says that this machine is the host: for a fresh one that doesn't know it yet. */
	here?: boolean
	dryRun: boolean
	/** Restrict the sources to these. */
	from?: readonly (SourceName | "git")[]
	/** Don't open the places of snapshots: the work is about models alone. */
	modelsOnly?: boolean
}

/** What is known before any connection is made. */
export type Target = {
	configuration: LoadedConfiguration
	environment: Environment
	hostConfiguration: HostConfiguration
	secrets: Secrets
	/** How the operator named the environment, for commands to type next. */
	spoken: string
	/** True when this machine, or a directory that stands in for it, is the host. */
	here: boolean
	/** What a remote caller sent along besides; undefined for a run that was started here. */
	sent?: SentAlong
}

/** What a client sends to the comfyume on the host, in the one frame on stdin. Nothing of it is written to a disk. */
const sentAlongSchema = z.strictObject({
	version: z.literal(1),
	configuration: z.string(),
	configurationPath: z.string(),
	environment: z.string(),
	host: z.string(),
	place: z.string(),
	spoken: z.string(),
	secrets: z.string(),
	/** Files that the operator named on his own machine, by what they are: `manifest`. */
	files: z.record(z.string(), z.string()).optional(),
	twin: z.strictObject({ state: z.enum(["offline", "online", "unknown"]), because: z.string() }).optional(),
})

export type SentAlong = z.infer<typeof sentAlongSchema>

/**
 * Reads configuration and secrets, and says where the work is to be done.
 * @throws {OperatorError} (2) for anything that is wrong with them, an unknown environment or host included
 */
export async function chooseTarget(surroundings: Surroundings, options: OpenOptions): Promise<Target> {
	if (surroundings.session !== undefined) return targetOfSession(surroundings.session.payload)
	const { variables, workingDirectory } = surroundings
	const configuration = loadConfiguration({ path: options.config, variables, workingDirectory })
	const named = options.config !== undefined || variables["COMFYUME_CONFIG"] !== undefined
	if (!named) await rejectForeign(configuration.path)
	// `staging`, or `staging app-1` where the environment has several hosts.
	const [hostOwnEnvironment, ownHost] = readHostOwnEnvironment()?.split(/\s+/) ?? []
	const environment = chooseEnvironment(configuration, {
		option: options.env,
		variables,
		hostOwnEnvironment,
	})
	const isOwn = hostOwnEnvironment === environment.name
	const hostConfiguration = chooseHost(environment, options.host ?? (isOwn ? ownHost : undefined))
	const machine = localHost({ name: hostname(), environment: variables, signal: surroundings.signal })
	const secrets = await loadSecrets({
		file: options.secrets,
		variables,
		workingDirectory,
		configurationPath: configuration.path,
		readKeyring: keyringReader(machine),
	})
	return {
		configuration,
		environment,
		hostConfiguration,
		secrets,
		spoken: spokenOptions(environment.name, options),
		here:
			options.here === true ||
			hostConfiguration.connection === "directory" ||
			// Never by the environment alone where it has several hosts: this machine may be one of the others.
			(isOwn && (ownHost ?? environment.hosts[0]?.name) === hostConfiguration.name),
	}
}

/**
 * A configuration says where tokens are sent and which code runs. One that root merely came across, upwards of where it
 * stands, must not be a file that another user can write.
 */
async function rejectForeign(path: string): Promise<void> {
	if (userInfo().uid !== 0) return
	const { uid, mode } = await stat(path)
	if (uid === 0 && (mode & 0o022) === 0) return
	throw new OperatorError(`${path} was found by itself, and others than root can write it`, {
		exitCode: exitCodes.refusedByGuard,
		hint: `add --config ${quoteForShell(path)} if that is the one you mean`,
	})
}

function targetOfSession(payload: unknown): Target {
	const parsed = sentAlongSchema.safeParse(payload)
	if (!parsed.success)
		throw new OperatorError("what the client sent can't be read by this release", { exitCode: exitCodes.bug })
	const sent = parsed.data
	const configuration = {
		...parseConfiguration(sent.configuration, sent.configurationPath),
		path: sent.configurationPath,
		text: sent.configuration,
	}
	const environment = chooseEnvironment(configuration, { option: sent.environment, variables: {} })
	return {
		configuration,
		environment,
		hostConfiguration: chooseHost(environment, sent.host),
		secrets: secretsFromPayload(new Secret(sent.secrets)),
		spoken: sent.spoken,
		here: true,
		sent,
	}
}

function spokenOptions(environment: string, { config, host, secrets, here }: OpenOptions): string {
	return [
		`--env ${environment}`,
		...(host === undefined ? [] : [`--host ${host}`]),
		...(here === true ? ["--here"] : []),
		...(config === undefined ? [] : [`--config ${quoteForShell(config)}`]),
		...(secrets === undefined ? [] : [`--secrets ${quoteForShell(secrets)}`]),
	].join(" ")
}

function chooseHost(environment: Environment, wanted: string | undefined): HostConfiguration {
	const names = environment.hosts.map(({ name }) => name)
	const [only, ...others] = environment.hosts
	const found =
		wanted === undefined
			? others.length === 0
				? only
				: undefined
			: environment.hosts.find(({ name }) => name === wanted)
	if (found !== undefined) return found
	throw new OperatorError(
		wanted === undefined
			? `${environment.name} has several hosts: ${names.join(", ")}`
			: `${environment.name} has no host ${wanted}: there are ${names.join(", ")}`,
		{ exitCode: exitCodes.usage, hint: `add --host ${names.join(" or --host ")}` },
	)
}

/** A target whose work is done on this machine, with everything open. */
export type Opened = { context: StepContext; [Symbol.asyncDispose](): Promise<void> }

/**
 * Opens the host and the stores. Stores that can't be used don't fail the run: they carry the reason.
 * Under a dry run everything is wrapped so that a write throws.
 */
export async function openHere(
	surroundings: Surroundings,
	{ environment, hostConfiguration, secrets, spoken, sent }: Target,
	options: OpenOptions,
): Promise<Opened> {
	const { signal, variables, now, randomId, version } = surroundings
	const machine = localHost({
		name: hostConfiguration.name,
		environment: variables,
		signal,
		...(hostConfiguration.connection === "directory" ? { root: hostConfiguration.directory } : {}),
	})
	const host = options.dryRun ? readOnlyHost(machine) : machine
	const opened: Source[] = []
	const openPlaces = async () => {
		const places = (await openStores(host, environment, secrets, { signal, from: options.from })).map(
			(source) =>
				source.name === "share" && environment.share !== undefined
					? { ...source, lock: openShareLock(host, environment.share, environment.name, surroundings) }
					: source,
		)
		opened.push(...places)
		const everySource = options.dryRun ? places.map(withoutWriting) : places
		return {
			sources: everySource.filter(({ name }) => options.from === undefined || options.from.includes(name)),
			everySource: sourcesOf({ sources: everySource }, { bucket: "cache" }),
		}
	}
	const buckets = openBuckets(environment, secrets, {
		cloudflare: { api: cloudflareApi, token: secrets.find("CLOUDFLARE_API_TOKEN") },
		signal,
	})
	const context: StepContext = {
		environment,
		hostConfiguration,
		host,
		place: sent?.place ?? host.place,
		...(options.modelsOnly === true ? { sources: [], everySource: [] } : await openPlaces()),
		openSources: openPlaces,
		openModels: once(async () => {
			const places = await openModelStores(host, environment, secrets, { signal, from: options.from })
			opened.push(...places)
			return options.dryRun ? places.map(withoutWriting) : places
		}),
		openDigests: async (artifact) => {
			const cache = await openDigestCache(machine.path(`${digestsDirectory}/${artifact}.json`), now)
			return options.dryRun ? { ...cache, note: async () => {}, save: async () => {} } : cache
		},
		...(environment.share === undefined
			? {}
			: { shareRemover: openShareRemover(host, environment.share, options.dryRun) }),
		buckets,
		publisher: { origin: huggingFace, token: secrets.find("HF_TOKEN") },
		gitToken: secrets.find("GH_TOKEN"),
		ageIdentity: secrets.find("AGE_IDENTITY"),
		spoken,
		comfyume: version,
		now,
		randomId,
		signal,
		summary: new Map(),
	}
	return {
		context,
		async [Symbol.asyncDispose]() {
			for (const { store } of opened) await store[Symbol.asyncDispose]()
			for (const bucket of buckets) await bucket[Symbol.asyncDispose]()
			await machine[Symbol.asyncDispose]()
		},
	}
}

/** On the host. */
const digestsDirectory = "/var/lib/comfyume/digests"
const huggingFace = "https://huggingface.co"
const cloudflareApi = "https://api.cloudflare.com/client/v4"

function withoutWriting({ lock: _, ...source }: Source): Source {
	return source.trouble === undefined ? { ...source, store: readOnlyStore(source.store) } : source
}

/** The same work for all who ask: done when the first one does. */
export function once<T>(work: () => Promise<T>): () => Promise<T> {
	let result: Promise<T> | undefined
	return () => (result ??= work())
}

/** Nearest first: the host's own directory, the share, R2; those that are configured and wanted. */
async function openStores(
	host: LocalHost,
	environment: Environment,
	secrets: Secrets,
	{ signal, from }: { signal: AbortSignal; from: OpenOptions["from"] },
): Promise<Source[]> {
	// Code from git alone still needs to know which commit ran, and the backups note that.
	const isWanted = (name: SourceName) => from === undefined || from.includes(name) || from.includes("git")
	const stores: Omit<Source, "trouble">[] = []
	const local = host.path(environment.directories.local)
	if (isWanted("local") && (await isDirectory(local)))
		stores.push({ name: "local", store: directoryStore({ name: "local", directory: local }) })
	if (isWanted("share") && environment.share !== undefined)
		stores.push({ name: "share", store: openShareBackups(host, environment.share) })
	const unusable: Source[] = []
	// One that isn't wanted isn't asked either: it may be the very one that gives no answer.
	if (isWanted("r2") && environment.objectStore !== undefined) {
		const { buckets, region } = environment.objectStore
		for (const name of ["cache", "images", "userFiles"] as const) {
			const place = buckets[name]
			if (place === undefined) continue
			const part = name === "cache" ? {} : { bucket: name }
			try {
				const store = await openBucket(place, region, secrets, signal)
				stores.push({ name: "r2", ...part, store: listedOnce(store, `${environment.name}/`) })
			} catch (error) {
				if (!(error instanceof OperatorError)) throw error
				unusable.push({ name: "r2", ...part, store: nowhere, trouble: error })
			}
		}
	}
	return [...(await probeSources(stores)), ...unusable]
}

/** The places of models, nearest first: the share's directory of models, and the bucket that is their vault. */
async function openModelStores(
	host: LocalHost,
	{ share, objectStore }: Environment,
	secrets: Secrets,
	{ signal, from }: { signal: AbortSignal; from: OpenOptions["from"] },
): Promise<Source[]> {
	const isWanted = (name: SourceName) => from === undefined || from.includes(name)
	const stores: { name: SourceName; store: ObjectStore }[] = []
	const unusable: Source[] = []
	if (isWanted("share") && share !== undefined)
		stores.push({ name: "share", store: openShareModels(host, share) })
	const vault = objectStore?.buckets.models
	if (isWanted("r2") && vault !== undefined) {
		try {
			stores.push({
				name: "r2",
				store: await openBucket(vault, objectStore?.region ?? "auto", secrets, signal),
			})
		} catch (error) {
			if (!(error instanceof OperatorError)) throw error
			unusable.push({ name: "r2", store: nowhere, trouble: error })
		}
	}
	return [...(await probeSources(stores)), ...unusable]
}

type Share = NonNullable<Environment["share"]>

/** Where the share's files are seen on this machine, and its directory of models below. */
export function shareDirectory(host: LocalHost, share: Share): [mountPoint: string, models: string] {
	return [share.filesystem === "directory" ? share.directory : host.path(share.mountPoint), share.models]
}

/** The share's directory of models as a store; holds nothing open. */
export const openShareModels = (host: LocalHost, share: Share): ObjectStore =>
	openShare(host, share, share.models)

/** The share's directory of snapshots as a store; holds nothing open. */
export const openShareBackups = (host: LocalHost, share: Share): ObjectStore =>
	openShare(host, share, share.backups)

function openShare(host: LocalHost, share: Share, below: string): ObjectStore {
	const [mountPoint] = shareDirectory(host, share)
	return directoryStore({
		name: "share",
		directory: join(mountPoint, below),
		mountPoint,
		mountCheck: () => requireMounted(host, share, mountPoint),
	})
}

function openShareRemover(host: LocalHost, share: Share, dryRun: boolean): ShareRemover {
	const [mountPoint] = shareDirectory(host, share)
	return shareRemover({
		directory: join(mountPoint, share.backups),
		mountCheck: () => requireMounted(host, share, mountPoint),
		dryRun,
	})
}

/** One for all hosts of an environment: those of another keep their snapshots elsewhere. */
function openShareLock(
	host: LocalHost,
	share: Share,
	environment: string,
	{ now, randomId, signal }: Surroundings,
): ShareLock {
	const [mountPoint] = shareDirectory(host, share)
	return shareLock({
		host,
		file: join(mountPoint, share.backups, environment, lockName),
		owner: `${environment} ${host.name}`,
		mountCheck: () => requireMounted(host, share, mountPoint),
		now,
		randomId,
		signal,
	})
}

/**
 * The share is mounted, and it is a volume of this environment: what every run asks before it reads or writes there.
 * @throws {OperatorError} (4) where it isn't mounted, (8) where it is another volume or another environment's
 */
export async function requireMounted(
	host: LocalHost,
	share: Share,
	mountPoint: string = shareDirectory(host, share)[0],
): Promise<void> {
	await requireMountPoint(host, share, mountPoint)
	// A share without the file is an older one's, or a new one: the step `share-sentinel` decides.
	await readShareSentinel(share, mountPoint)
}

/**
 * The environments that the file ENVIRONMENT in the share's root names; undefined where there is no such file.
 * @throws {OperatorError} (8) when this environment is not one of them
 */
export async function readShareSentinel(share: Share, mountPoint: string): Promise<string[] | undefined> {
	const file = join(mountPoint, sentinelName)
	const text = await readFile(file, "utf8").catch((error: unknown) => {
		if (codeOf(error) === "ENOENT") return undefined
		throw systemError(error, `reading ${file}`)
	})
	if (text === undefined) return undefined
	const named = readSentinel(text)
	if (named.includes(share.environment)) return named
	throw new OperatorError(
		named.length === 0
			? `${file} names no environment, and this share is to serve ${share.environment}`
			: `the share at ${mountPoint} is for ${named.join(" and ")}, not for ${share.environment}: ${file} says so`,
		{
			exitCode: exitCodes.refusedByGuard,
			hint: `cat ${file}; compare share.mount in comfyume.yaml with the console`,
		},
	)
}

/**
 * An unmounted share is an empty directory on the root disk: read, it has lost everything; written, it fills the disk.
 * @throws {OperatorError} (4) where nothing is mounted, (8) where it is something else
 */
export async function requireMountPoint(
	host: LocalHost,
	share: Share,
	mountPoint: string = shareDirectory(host, share)[0],
): Promise<void> {
	if (share.filesystem === "directory") {
		if (await isDirectory(mountPoint)) return
		throw new OperatorError(`the share's directory ${mountPoint} does not exist`, {
			exitCode: exitCodes.unreachable,
			// Made by hand it would be an empty directory on the root disk, which a backup or a restore then fills.
			hint: `ls -ld ${mountPoint}; compare share.directory in comfyume.yaml`,
		})
	}
	const { filesystem: found = "", source = "" } = (await mountAt(mountPoint)) ?? {}
	const hint = share.mount.whole
	if (found === "")
		throw new OperatorError(`the share is not mounted at ${mountPoint}`, {
			exitCode: exitCodes.unreachable,
			hint,
		})
	if (share.filesystem === "nfs4" && found !== "nfs4")
		throw new OperatorError(`${mountPoint} is ${found}, and the share is expected to be nfs4`, {
			exitCode: exitCodes.refusedByGuard,
			hint,
		})
	// The pseudopath changes when the volume is renamed or remounted; another volume looks the same until it is written to.
	if (share.mount.filesystem !== "bind" && source !== `${share.mount.source.host}:${share.mount.source.path}`)
		throw new OperatorError(
			`${mountPoint} is ${source}, and the share is expected to be ${share.mount.source.host}:${share.mount.source.path}`,
			{ exitCode: exitCodes.refusedByGuard, hint: "compare share.mount in comfyume.yaml with the console" },
		)
}

async function openBucket(
	{ bucket, endpoint }: BucketConfiguration,
	region: string,
	secrets: Secrets,
	signal: AbortSignal,
): Promise<ObjectStore> {
	const forWhat = `the bucket ${bucket}`
	const accessKeyId = secrets.need("R2_ACCESS_KEY_ID", forWhat)
	const secretAccessKey = secrets.need("R2_SECRET_ACCESS_KEY", forWhat)
	// Only here: a command that doesn't need the object store doesn't load its SDK.
	const { s3Store } = await import("../storage/s3.ts")
	return s3Store({ name: "r2", endpoint, bucket, region, accessKeyId, secretAccessKey, signal })
}

/** Stands where a store could not be opened. Its source carries the trouble, so nobody asks it anything. */
const nowhere: ObjectStore = {
	name: "r2",
	place: "not opened",
	probe: () => Promise.reject(new Error("not opened")),
	head: () => Promise.reject(new Error("not opened")),
	// biome-ignore lint/correctness/useYield: it never gets that far
	list: async function* () {
		throw new Error("not opened")
	},
	get: () => Promise.reject(new Error("not opened")),
	byteSource: () => {
		throw new Error("not opened")
	},
	put: () => Promise.reject(new Error("not opened")),
	async [Symbol.asyncDispose]() {},
}
