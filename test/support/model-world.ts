// A share of models that is a directory, their vault in a strict S3 server, and comfyume between them: the plans run in
// this process, from a real configuration.
import { createHash } from "node:crypto"
import {
	existsSync,
	mkdirSync,
	mkdtempSync,
	readdirSync,
	readFileSync,
	rmSync,
	statSync,
	writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { Readable } from "node:stream"
import { fileURLToPath } from "node:url"
import { planBackup } from "../../src/commands/backup.ts"
import { planStatus } from "../../src/commands/backup-status.ts"
import {
	type Manifest,
	type ModelEntry,
	parseManifest,
	renderManifest,
} from "../../src/lib/models/manifest.ts"
import type { Event } from "../../src/lib/plan/events.ts"
import { runPlan } from "../../src/lib/plan/run.ts"
import type { Plan } from "../../src/lib/plan/step.ts"
import { Secret } from "../../src/lib/secret.ts"
import type { StepContext } from "../../src/lib/steps/context.ts"
import { chooseTarget, openHere } from "../../src/lib/steps/open.ts"
import { planRestore } from "../../src/lib/steps/restore.ts"
import { type HealModelsOptions, planHeal } from "../../src/lib/steps/restore-models.ts"
import type { RestoreOptions } from "../../src/lib/steps/restore-options.ts"
import { blockBytes } from "../../src/lib/storage/transfer.ts"
import { restoreRun } from "./restore-run.ts"
import { startS3Server } from "./s3-server/index.ts"

const packageRoot = fileURLToPath(new URL("../../", import.meta.url))
const credentials = { accessKeyId: "made-up-key-id", secretAccessKey: "made-up-secret-access-key" }
const vaultBucket = "model-vault"

export type Ran = {
	exitCode: number
	/** By the model's path, or the step's id. */
	outcome: (path: string) => string | undefined
	because: (path: string) => string | undefined
	hint: (path: string) => string | undefined
	notes: string[]
	rows: { artifact: string; source: string; verified: string; ok: boolean }[]
	events: Event[]
}

export type ModelWorld = Awaited<ReturnType<typeof createModelWorld>>

/** @param options.large objects lie on a disk, not in memory */
export async function createModelWorld({ large = false } = {}) {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-models-"))
	const share = join(directory, "share")
	const models = join(share, "models/shared")
	for (const made of [models, join(directory, "server")]) mkdirSync(made, { recursive: true })
	const s3 = await startS3Server({
		buckets: ["cache-backups", vaultBucket],
		credentials: [credentials],
		...(large ? { directory: join(directory, "objects") } : {}),
	})
	const configuration = join(directory, "comfyume.yaml")
	writeFileSync(configuration, configurationText(s3.endpoint))
	writeFileSync(
		join(directory, "secrets.env"),
		`R2_ACCESS_KEY_ID=${credentials.accessKeyId}\nR2_SECRET_ACCESS_KEY=${credentials.secretAccessKey}\n`,
		{ mode: 0o600 },
	)
	const manifestFile = join(directory, "models.yaml")
	let publisher: StepContext["publisher"] = { origin: "https://hub.example.test", token: undefined }

	const surroundings = (signal: AbortSignal) => ({
		variables: { PATH: process.env.PATH },
		workingDirectory: directory,
		terminal: { out: () => {}, talk: () => {}, interactive: false, columns: 80, color: false },
		stdin: Readable.from([]),
		now: () => new Date("2026-11-21T06:00:00Z"),
		randomId: () => "0123abcd",
		signal,
		packageRoot,
		version: "0.0.0-test",
	})

	async function run(
		make: (context: StepContext) => Promise<Plan>,
		{
			dryRun = false,
			from,
			onEvent,
			signal = new AbortController().signal,
		}: {
			dryRun?: boolean
			from?: RestoreOptions["from"]
			onEvent?: (event: Event) => void
			signal?: AbortSignal
		} = {},
	): Promise<Ran> {
		const given = surroundings(signal)
		const opening = { env: "sandbox", config: configuration, dryRun, ...(from && { from }) }
		await using opened = await openHere(given, await chooseTarget(given, opening), opening)
		const events: Event[] = []
		const plan = await make({ ...opened.context, publisher })
		const { exitCode, outcomes } = await runPlan(plan, {
			dryRun,
			now: given.now,
			signal,
			reporter: {
				event: (event) => {
					events.push(event)
					onEvent?.(event)
				},
				close: async () => {},
			},
		})
		const ended = (path: string) =>
			events.find((event) => event.event === "step" && [path, `models/${path}`].includes(event.step)) as
				| Extract<Event, { event: "step" }>
				| undefined
		return {
			exitCode,
			outcome: (path) => outcomes.get(`models/${path}`) ?? outcomes.get(path),
			because: (path) => ended(path)?.because,
			hint: (path) => ended(path)?.hint,
			notes: events.flatMap((event) => (event.event === "note" ? [event.text] : [])),
			rows: events.flatMap((event) => (event.event === "end" ? event.summary : [])),
			events,
		}
	}

	const manifestText = () => readFileSync(manifestFile, "utf8")
	const file = (path: string) => join(models, path)

	return {
		directory,
		share,
		models,
		s3,
		configuration,
		manifestFile,
		/** A model on the share, on this machine's disk. */
		file,
		write: (path: string, content: Buffer | string) => {
			mkdirSync(dirname(file(path)), { recursive: true })
			writeFileSync(file(path), content)
		},
		digest: (path: string) => (existsSync(file(path)) ? sha256(readFileSync(file(path))) : "nothing"),
		/** Puts an object into the vault, as an earlier backup did. */
		store: async (path: string, content: Buffer, claimed: string | null = sha256(content)) => {
			const object = {
				key: path,
				etag: `"${sha256(content).slice(0, 32)}"`,
				storedAt: new Date("2026-11-20T00:00:00Z"),
				metadata: claimed === null ? {} : { sha256: claimed },
				contentType: "application/octet-stream",
			}
			await s3.objects.write(vaultBucket, object, content)
		},
		vaultKeys: () => s3.objects.keys(vaultBucket),
		vault: (path: string) => s3.objects.find(vaultBucket, path),
		vaultContent: (path: string) => s3.objects.read(vaultBucket, path),
		corrupt: (path: string) => s3.objects.corrupt(vaultBucket, path, flipped),
		/** Bytes of models that the vault has sent. */
		sentBytes: () => requests("GetObject").reduce((sum, { bytesOut }) => sum + bytesOut, 0),
		requests: (operation: string) => requests(operation),
		declare: (entries: readonly ModelEntry[]) =>
			writeFileSync(manifestFile, renderManifest({ version: 1, models: [...entries] } satisfies Manifest)),
		publishedBy: (origin: string, token?: string) => {
			publisher = { origin, token: token === undefined ? undefined : new Secret(token) }
		},
		restore: (
			options: Partial<RestoreOptions> & {
				dryRun?: boolean
				onEvent?: (event: Event) => void
				signal?: AbortSignal
			} = {},
		) =>
			run(
				(context) =>
					planRestore(context, restoreRun(packageRoot, { state: "offline", because: "nobody was asked" }), {
						only: ["models"],
						skip: [],
						manifestText: manifestText(),
						...options,
					}),
				options,
			),
		backup: (
			options: {
				deep?: boolean
				manifest?: string
				dryRun?: boolean
				onEvent?: (event: Event) => void
				signal?: AbortSignal
			} = {},
		) =>
			run(
				(context) =>
					planBackup(context, packageRoot, {
						only: ["models"],
						skip: [],
						manifestText: manifestText(),
						...options,
					}),
				options,
			),
		/** What `backup status` says of the models. */
		status: () => run((context) => planStatus(context, packageRoot, { only: ["models"], skip: [] })),
		heal: (options: Partial<HealModelsOptions> & { directory?: string; dryRun?: boolean } = {}) =>
			run(
				async (context) =>
					planHeal(context, parsed(manifestText()), {
						level: "structure",
						deep: false,
						fromOrigin: false,
						again: "comfyume verify-models --heal",
						...options,
					}),
				options,
			),
		/** Names of everything below the share, but for the lock. */
		names: () =>
			readdirSync(share, { recursive: true, encoding: "utf8" })
				.filter((name) => statSync(join(share, name)).isFile() && !name.endsWith(".comfyume.lock"))
				.map((name) => name.replace(/^models\/shared\//, ""))
				.sort(),
		async [Symbol.asyncDispose]() {
			await s3.close()
			rmSync(directory, { recursive: true, force: true })
		},
	}

	function requests(operation: string) {
		return s3.log.filter((entry) => entry.operation === operation && entry.bucket === vaultBucket)
	}
}

const configurationText = (endpoint: string) => `version: 1
environments:
  sandbox:
    domain: sandbox.example.test
    allowStandIns: true
    allowPlainHttp: true
    hosts:
      - { name: app-1, role: app, connection: directory, directory: ./server }
    share: { filesystem: directory, directory: ./share }
    objectStore:
      provider: s3
      buckets:
        cache: { bucket: cache-backups, endpoint: "${endpoint}" }
        models: { bucket: ${vaultBucket}, endpoint: "${endpoint}" }
    git:
      project: { remote: ./project.git, branch: main, path: /home/dev/project }
      scripts: { remote: ./project.git, branch: main, path: /home/dev/scripts }
`

/** What a manifest says of a model that was measured. */
export function entryOf(path: string, content: Buffer, more: Partial<ModelEntry> = {}): ModelEntry {
	const blocks: string[] = []
	for (let at = 0; at < content.length; at += blockBytes)
		blocks.push(sha256(content.subarray(at, at + blockBytes)))
	return {
		path,
		sizeBytes: content.length,
		sha256: sha256(content),
		figures: { from: "a test", verified: true },
		blocks: { sizeBytes: blockBytes, sha256: blocks },
		...more,
	}
}

export const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex")

/** One bit flipped, near the end. */
export function flipped(content: Buffer): Buffer {
	const copy = Buffer.from(content)
	copy[copy.length - 9] = (copy.at(-9) ?? 0) ^ 1
	return copy
}

function parsed(text: string): Manifest {
	const read = parseManifest(text)
	if (read.problems !== undefined) throw new Error(read.problems.map(({ message }) => message).join("; "))
	return read.manifest
}
