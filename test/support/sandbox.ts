// A small world in temporary directories: a server that is a directory, a share that is one, and a git remote that is
// one. Everything else is the real thing. What needs a real server stands in the e2e tests.
import { execFileSync } from "node:child_process"
import { randomBytes } from "node:crypto"
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { planBackup } from "../../src/commands/backup.ts"
import { type DrillOptions, planDrill } from "../../src/commands/backup-drill.ts"
import { planRetention } from "../../src/commands/backup-retention.ts"
import { planStatus } from "../../src/commands/backup-status.ts"
import { probeSources, type SourceName } from "../../src/lib/artifacts/source.ts"
import type { Environment } from "../../src/lib/config/environment.ts"
import { localHost } from "../../src/lib/host/local.ts"
import { openDigestCache } from "../../src/lib/models/digest-cache.ts"
import type { Event } from "../../src/lib/plan/events.ts"
import { runPlan } from "../../src/lib/plan/run.ts"
import type { Plan } from "../../src/lib/plan/step.ts"
import { Secret } from "../../src/lib/secret.ts"
import type { StepContext } from "../../src/lib/steps/context.ts"
import { planRestore } from "../../src/lib/steps/restore.ts"
import type { RestoreOptions } from "../../src/lib/steps/restore-options.ts"
import { directoryStore } from "../../src/lib/storage/directory.ts"
import { lockName } from "../../src/lib/storage/keys.ts"
import type { ObjectStore } from "../../src/lib/storage/object-store.ts"
import { shareLock } from "../../src/lib/storage/share-lock.ts"
import { shareRemover } from "../../src/lib/storage/share-remover.ts"
import type { Twin } from "../../src/lib/tailscale/tailnet.ts"
import { restoreRun } from "./restore-run.ts"
import { fillServer, freshServer, makeRemote, tailscaleAddressOf } from "./server-files.ts"

const packageRoot = fileURLToPath(new URL("../../", import.meta.url))

export type Ran = {
	exitCode: number
	events: Event[]
	outcome: (step: string) => string | undefined
	notes: string[]
}

export type Sandbox = Awaited<ReturnType<typeof createSandbox>>

/**
 * @param environmentName what the sidecars will say; `sandbox` without it
 * @param share another world's, to have one share for both
 * @param lockWaitMs how long a run waits for another host's
 */
export async function createSandbox({
	environmentName = "sandbox",
	share: given,
	lockWaitMs = 60_000,
}: {
	environmentName?: string
	share?: string
	lockWaitMs?: number
} = {}) {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-sandbox-"))
	const share = given ?? join(directory, "share")
	const second = join(directory, "second")
	const remote = join(directory, "project.git")
	mkdirSync(share, { recursive: true })
	mkdirSync(second)
	makeRemote(remote)

	let identity: Secret | undefined
	const hostNames = new Map<string, string>()
	let clock = new Date("2026-11-21T06:00:00Z")
	const now = () => clock
	const environment: Environment = {
		name: environmentName,
		domain: "workshop.example.test",
		hosts: [
			{
				name: "app-1",
				role: "app",
				tailnet: "none",
				firewall: [{ port: 22, protocol: "tcp", limit: true }],
				workers: 0,
				hostKeys: [],
				connection: "directory",
				directory: join(directory, "server"),
			},
		],
		git: {
			project: { remote, branch: "main", path: "/home/dev/project" },
			scripts: { remote, branch: "main", path: "/home/dev/scripts" },
		},
		user: "dev",
		operators: [],
		packages: { extra: [], tailscale: { repository: "https://packages.example.test" } },
		keyring: false,
		directories: { local: "/root/comfyume-backups" },
		allowStandIns: true,
		allowPlainHttp: false,
		backups: { without: [], recipients: [] },
		restore: { refuseOlderThanHours: 72 },
	}
	const stores: Record<string, () => ObjectStore> = {
		local: () =>
			directoryStore({ name: "local", directory: join(directory, "server/root/comfyume-backups") }),
		share: () => directoryStore({ name: "share", directory: share }),
		// The second place stands where R2 will: what matters to the chain is that it is another store.
		r2: () => directoryStore({ name: "r2", directory: second }),
	}

	async function context(server: string, sourceNames: readonly SourceName[]): Promise<StepContext> {
		const [first] = environment.hosts
		if (first === undefined) throw new Error("the world has a host")
		const hostConfiguration = { ...first, name: hostNames.get(server) ?? first.name }
		const host = localHost({ name: hostConfiguration.name, root: server, environment: process.env })
		const signal = new AbortController().signal
		const randomId = () => randomBytes(4).toString("hex")
		const mountCheck = async () => void readdirSync(share)
		const lock = shareLock({
			...{ host, mountCheck, now, randomId, signal, waitMs: lockWaitMs },
			file: join(share, environmentName, lockName),
			owner: `${environmentName} ${hostConfiguration.name}`,
		})
		const sources = await probeSources(
			sourceNames.flatMap((name) => {
				const store = stores[name]?.()
				return store === undefined ? [] : [{ name, store, ...(name === "share" && { lock }) }]
			}),
		)
		return {
			environment,
			hostConfiguration,
			host,
			openSources: async () => ({ sources, everySource: sources }),
			sources,
			everySource: sources,
			openModels: async () => [],
			openDigests: (artifact) =>
				openDigestCache(join(server, "var/lib/comfyume/digests", `${artifact}.json`), now),
			shareRemover: shareRemover({
				directory: share,
				mountCheck,
				dryRun: false,
			}),
			buckets: [],
			publisher: { origin: "https://huggingface.example.test", token: undefined },
			place: `stand-in: ${server}`,
			gitToken: undefined,
			ageIdentity: identity,
			spoken: `--env ${environmentName}`,
			comfyume: "0.0.0-test",
			now,
			randomId,
			signal,
			summary: new Map(),
		}
	}

	async function run(
		make: (given: StepContext) => ReturnType<typeof planBackup>,
		given: StepContext,
		dryRun: boolean,
		{
			change = (plan: Plan) => plan,
			onEvent,
			checksOnly = false,
		}: { change?: (plan: Plan) => Plan; onEvent?: (event: Event) => void; checksOnly?: boolean } = {},
	): Promise<Ran> {
		const events: Event[] = []
		const { exitCode, outcomes } = await runPlan(change(await make(given)), {
			dryRun,
			checksOnly,
			now,
			signal: given.signal,
			reporter: {
				event: (event) => {
					events.push(event)
					onEvent?.(event)
				},
				close: async () => {},
			},
		})
		return {
			exitCode,
			events,
			outcome: (step) => outcomes.get(step),
			notes: events.flatMap((event) => (event.event === "note" ? [event.text] : [])),
		}
	}

	return {
		directory,
		/** From now on this is the second place. */
		setObjectStore: (open: () => ObjectStore) => {
			stores["r2"] = open
		},
		share,
		/** Where R2 would be. */
		second,
		remote,
		environment,
		now,
		/** Sets the clock. */
		at: (time: string) => {
			clock = new Date(time)
		},
		/** Whom backups are encrypted for from now on. */
		encryptFor: (...recipients: string[]) => {
			environment.backups = { ...environment.backups, recipients }
		},
		/** What AGE_IDENTITY is from now on. */
		setIdentity: (text: string | undefined) => {
			identity = text === undefined ? undefined : new Secret(text)
		},
		/** Moves the clock on. */
		later: (minutes: number) => {
			clock = new Date(clock.getTime() + minutes * 60_000)
		},
		/** A server with files as a workshop's server has them, in a directory of its own; `app-1` unless named. */
		fillServer: async (name = "server", hostName?: string) => {
			const server = await fillServer(join(directory, name), remote)
			if (hostName !== undefined) hostNames.set(server, hostName)
			const [hostConfiguration] = environment.hosts
			if (hostConfiguration !== undefined) hostConfiguration.tailscaleAddress = tailscaleAddressOf(server)
			return server
		},
		/** A machine fresh from the provider. */
		freshServer: (name: string) => freshServer(join(directory, name)),
		context,
		backup: async (
			server: string,
			options: {
				only?: string[]
				skip?: string[]
				dryRun?: boolean
				to?: SourceName[]
				scheduled?: boolean
				full?: boolean
			} = {},
			onEvent?: (event: Event) => void,
		) =>
			run(
				(given) =>
					planBackup(given, packageRoot, {
						only: options.only ?? [],
						skip: options.skip ?? [],
						scheduled: options.scheduled ?? false,
						full: options.full ?? false,
					}),
				await context(server, options.to ?? ["share", "r2"]),
				options.dryRun ?? false,
				onEvent === undefined ? {} : { onEvent },
			),
		/** What `backup status` says; as from cron on the host, with nothing but the two destinations. */
		status: async (server: string, options: { only?: string[]; to?: SourceName[] } = {}) =>
			run(
				(given) => planStatus(given, packageRoot, { only: options.only ?? [], skip: [] }),
				await context(server, options.to ?? ["share", "r2"]),
				false,
				{ checksOnly: true },
			),
		drill: async (
			server: string,
			options: Partial<DrillOptions> & { dryRun?: boolean; to?: readonly SourceName[] } = {},
			onEvent?: (event: Event) => void,
		) =>
			run(
				(given) => planDrill(given, packageRoot, { only: [], skip: [], ...options }),
				await context(server, options.to ?? ["share", "r2"]),
				options.dryRun ?? false,
				{ checksOnly: options.history ?? false, ...(onEvent === undefined ? {} : { onEvent }) },
			),
		retention: async (
			server: string,
			options: { only?: string[]; dryRun?: boolean; report?: boolean; to?: readonly SourceName[] } = {},
			change?: (given: StepContext) => StepContext,
		) => {
			const given = await context(server, options.to ?? ["share", "r2"])
			return run(
				(whole) =>
					planRetention(whole, packageRoot, {
						only: options.only ?? [],
						skip: [],
						report: options.report ?? false,
					}),
				change?.(given) ?? given,
				options.dryRun ?? false,
				{ checksOnly: options.report ?? false },
			)
		},
		restore: async (
			server: string,
			options: Partial<RestoreOptions> & { dryRun?: boolean; sources?: SourceName[]; twin?: Twin } = {},
			change?: (plan: Plan) => Plan,
		) =>
			run(
				(given) =>
					planRestore(
						given,
						restoreRun(
							packageRoot,
							options.twin ?? { state: "offline", because: "the lost machine is offline" },
						),
						{ only: [], skip: [], ...options },
					),
				await context(server, options.sources ?? ["share", "r2"]),
				options.dryRun ?? false,
				change === undefined ? {} : { change },
			),
		/** An independent look at a tree: what `find` and `sha256sum` say of everything below these paths. */
		inventory: (server: string, paths: readonly string[]) => inventory(server, paths),
		[Symbol.dispose]: () => rmSync(directory, { recursive: true, force: true }),
	}
}

function inventory(server: string, paths: readonly string[]): string {
	const found = execFileSync(
		"find",
		[
			...paths,
			"(",
			"-name",
			".git",
			"-o",
			"-name",
			".cache",
			"-o",
			"-name",
			".comfyume",
			")",
			"-prune",
			"-o",
			"-printf",
			"%y %m %l %p\\n",
		],
		{ cwd: server, encoding: "utf8" },
	)
	const files = found
		.split("\n")
		.filter((line) => line.startsWith("f "))
		.map((line) => line.split(" ").slice(3).join(" "))
		.sort()
	const sums = files.map((file) => execFileSync("sha256sum", ["--", file], { cwd: server, encoding: "utf8" }))
	return [...found.trim().split("\n").sort(), ...sums].join("\n")
}

/** Flips one bit in the middle of a file, keeping its length. */
export function flipBit(file: string): void {
	const bytes = readFileSync(file)
	const middle = bytes.length >> 1
	bytes[middle] = (bytes[middle] ?? 0) ^ 1
	writeFileSync(file, bytes)
}
