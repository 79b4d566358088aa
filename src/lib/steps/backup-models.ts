// Models are backed up: every whole one on the share that the vault doesn't have is stored there. Nothing is replaced.
import { createHash } from "node:crypto"
import { stat } from "node:fs/promises"
import { join } from "node:path"
import { exitCodes, OperatorError, systemError } from "../errors.ts"
import { isModelName, listModels } from "../models/directories.ts"
import { type Manifest, type ModelEntry, pathProblem } from "../models/manifest.ts"
import { isTrusted, unverifiedDifference } from "../models/offer.ts"
import { verifyModel } from "../models/verify.ts"
import { needed, type Report, type Step, type SummaryRow, satisfied } from "../plan/step.ts"
import { openHashPool } from "../storage/hash-pool.ts"
import type { ObjectHead, ObjectStore } from "../storage/object-store.ts"
import { formatBytes } from "../ui/format.ts"
import type { StepContext } from "./context.ts"
import { modelRows, shareTarget, stepOf } from "./models.ts"
import type { ModelSteps } from "./restore-models.ts"

const vaultStep = "models"

export type BackupModelsOptions = {
	/** Also read what the vault has already, and hold it against the vault's digest. */
	deep: boolean
	limitBytesPerSecond?: number
}

// Notes of uploads that were interrupted: the work directory is emptied before each run, and these must last.
const uploadsDirectory = "/var/lib/comfyume/uploads"

/**
 * A step that the vault is in reach, then one for each model on the share. Lists the share; a share that can't be used
 * is one failed step, so that everything else is backed up all the same.
 */
export async function backupModels(
	context: StepContext,
	manifest: Manifest,
	options: BackupModelsOptions,
): Promise<ModelSteps> {
	const { signal } = context
	const target = shareTarget(context)
	let listed: readonly string[] = []
	let trouble: OperatorError | undefined
	try {
		await target.ready()
		listed = await listModels(target.directory, signal)
	} catch (error) {
		signal.throwIfAborted()
		trouble = systemError(error, `listing ${target.directory}`)
	}
	const paths = listed.filter(isModelName)
	const vault: Vault = { heads: new Map() }
	const right = new Set<string>()
	const said = new Map<string, Omit<SummaryRow, "artifact">>()
	const reach: Step = {
		id: vaultStep,
		title: "the share's models and their vault are in reach",
		check: async (report) => {
			if (trouble !== undefined) throw trouble
			// An empty directory is what a share that isn't mounted looks like.
			if (paths.length === 0)
				throw new OperatorError(`there is no model below ${target.directory}`, {
					hint: `findmnt --target ${target.directory}`,
				})
			await openVault(context, vault)
			if (listed.length > paths.length)
				report.note(`${listed.length - paths.length} files are no models by their names, and are left out`)
			return satisfied(`${paths.length} on the share, ${vault.heads.size} in r2`)
		},
		apply: async () => {},
	}
	const entries = new Map(manifest.models.map((entry) => [entry.path, entry]))
	const tools = { context, directory: target.directory, options, vault, right, said }
	return {
		steps: [reach, ...paths.map((path) => modelStep(tools, entries.get(path) ?? { path }))],
		rows: () =>
			paths.length === 0
				? [{ artifact: vaultStep, source: "nowhere", snapshot: "none", verified: notStored, ok: false }]
				: modelRows(paths, {
						right: { paths: right, source: "share, r2", verified: "stored already" },
						said,
						otherwise: notStored,
					}),
	}
}

const notStored = "not backed up; the reason stands above"

type Vault = { store?: ObjectStore; heads: Map<string, ObjectHead> }

/** One listing for all models. */
async function openVault({ openModels }: StepContext, vault: Vault): Promise<void> {
	const place = (await openModels()).find(({ name }) => name === "r2")
	if (place === undefined)
		throw new OperatorError("no bucket for models is configured", { exitCode: exitCodes.usage })
	if (place.trouble !== undefined) throw place.trouble
	vault.store = place.store
	for await (const head of place.store.list("")) vault.heads.set(head.key, head)
}

type Tools = {
	context: StepContext
	directory: string
	options: BackupModelsOptions
	vault: Vault
	right: Set<string>
	said: Map<string, Omit<SummaryRow, "artifact">>
}

function modelStep({ context, directory, options, vault, right, said }: Tools, entry: ModelEntry): Step {
	const { signal, spoken } = context
	const { path } = entry
	const file = join(directory, path)
	const heal = `comfyume restore ${spoken} --only models`
	let stored: { digest: string; sizeBytes: number } | undefined

	const differing = (has: string, there: string) =>
		new OperatorError(`the share has ${has}, and r2 has ${there} under this name: neither is touched`, {
			hint: `comfyume verify-models ${spoken}   # says which of them is right`,
		})

	/** Nothing damaged may stand in the vault under a model's name: it could never be replaced. */
	const requireWhole = async () => {
		const known = isTrusted(entry) ? entry : { path }
		const { status, because } = await verifyModel(directory, path, known, {
			level: "structure",
			signal,
		})
		if (status !== "ok")
			throw new OperatorError(`${status}: ${because}; nothing damaged is stored`, { hint: heal })
	}

	const digestOf = async (report: Report) => {
		const { size } = await stat(file)
		await using pool = openHashPool(1)
		const onProgress = (doneBytes: number) =>
			report.progress({ doneBytes, totalBytes: size, from: "hashing the share" })
		return await pool.hashFile(file, { signal, onProgress }).catch((error) => {
			throw systemError(error, `reading ${file}`)
		})
	}

	/** The vault's object, held against the file; `head` as the store gives it now, with what it claims. */
	const compareDeep = async (store: ObjectStore, report: Report) => {
		const head = await store.head(path)
		const { digest, sizeBytes } = await digestOf(report)
		if (head?.claimedDigest !== undefined && head.claimedDigest !== digest)
			throw differing(`sha256 ${digest}`, head.claimedDigest)
		return satisfied(
			head?.claimedDigest === undefined
				? `r2 has ${sizeBytes} bytes, and doesn't say with which sha256`
				: `r2 has it with this sha256, as it says`,
		)
	}

	return {
		id: stepOf(path),
		title: stepOf(path),
		requires: [vaultStep],
		check: async (report) => {
			const store = vault.store
			if (store === undefined) throw new Error("the vault is opened by the step before")
			const problem = pathProblem(path)
			if (problem !== undefined) throw new OperatorError(`its path ${problem}`, { hint: `mv ${file} …` })
			if (stored !== undefined) {
				const head = await store.head(path)
				if (head?.sizeBytes !== stored.sizeBytes || head.claimedDigest !== stored.digest)
					return needed("r2 doesn't have what was just stored")
				const digest = stored.digest.slice(0, 12)
				said.set(path, {
					source: "share, r2",
					snapshot: "none",
					digest,
					verified: "stored by this run",
					ok: true,
				})
				return satisfied(`r2 has it, sha256 ${stored.digest}`)
			}
			const head = vault.heads.get(path)
			if (head === undefined) {
				await requireWhole()
				const { size } = await stat(file)
				return needed(`r2 doesn't have it: ${formatBytes(size)}`)
			}
			const facts = await stat(file).catch(() => undefined)
			if (facts?.size !== head.sizeBytes) {
				// A damaged one is better named for what it is.
				await requireWhole()
				throw differing(`${facts?.size} bytes`, String(head.sizeBytes))
			}
			const finding = options.deep
				? await compareDeep(store, report)
				: satisfied(`r2 has its ${head.sizeBytes} bytes`)
			right.add(path)
			return finding
		},
		apply: async (report) => {
			const store = vault.store
			if (store === undefined) throw new Error("the vault is opened by the step before")
			const measured = await digestOf(report)
			const { digest, sizeBytes } = measured
			if (isTrusted(entry) && entry.sha256 !== undefined && entry.sha256 !== digest)
				throw new OperatorError(`its sha256 is ${digest}, not ${entry.sha256}: nothing damaged is stored`, {
					hint: `${heal} --deep`,
				})
			const difference = unverifiedDifference(entry, measured)
			if (difference !== undefined)
				report.warn(`the manifest's figure was never verified, and is not this file's: ${difference}`)
			await context.host.files.makeDirectory(uploadsDirectory, 0o700)
			const note = `${createHash("sha256").update(`${store.place}/${path}`).digest("hex").slice(0, 16)}.json`
			await store.put(path, file, {
				sizeBytes,
				digest,
				ifAbsent: true,
				signal,
				resumeFile: context.host.path(join(uploadsDirectory, note)),
				...(options.limitBytesPerSecond && { limitBytesPerSecond: options.limitBytesPerSecond }),
				onProgress: (doneBytes) =>
					report.progress({ doneBytes, totalBytes: sizeBytes, from: `to ${store.name}` }),
			})
			stored = measured
		},
	}
}
