// Models come back: each that is missing or damaged, from the best source, and none that is right is touched.
import { access, constants, lstat, readdir, stat } from "node:fs/promises"
import { dirname, join } from "node:path"
import { codeOf, exitCodes, messageOf, OperatorError, systemError } from "../errors.ts"
import { lockFile } from "../host/lock.ts"
import { type Condition, conditionOf } from "../models/condition.ts"
import { digestCacheFile, openDigestCache } from "../models/digest-cache.ts"
import { hashingAlone } from "../models/hashing-alone.ts"
import { type Healed, healModel } from "../models/heal.ts"
import type { Manifest, ModelEntry } from "../models/manifest.ts"
import { expectationOf, type ModelSource } from "../models/offer.ts"
import { otherModelAt } from "../models/put-in-place.ts"
import type { Level, Verdict } from "../models/verify.ts"
import {
	type Finding,
	needed,
	type Plan,
	type Report,
	type Step,
	type SummaryRow,
	satisfied,
	unknown,
} from "../plan/step.ts"
import { lockName } from "../storage/keys.ts"
import { formatBytes } from "../ui/format.ts"
import type { StepContext } from "./context.ts"
import { directoryTarget, type ModelsTarget, modelRows, modelSources, shareTarget, stepOf } from "./models.ts"
import { cacheDirectory } from "./verify-models.ts"

export type HealModelsOptions = {
	/** How deep to look at what is there. What this run has put there is always read to its last byte. */
	level: Level
	/** For the level `digest`: read every byte, whatever is remembered of it. */
	deep: boolean
	/** Also from the source URLs of the manifest. */
	fromOrigin: boolean
	/** Where to fetch to, as the host sees it, when that isn't the share itself. */
	tempDirectory?: string
	/** Over all connections. */
	limitBytesPerSecond?: number
	/** The command to type again, without `--from-origin`. */
	again: string
}

export type ModelSteps = { steps: Step[]; rows: () => SummaryRow[] }

const placeStep = "models"

/**
 * First a step that the place of models is in reach, then one for each model of the manifest, independent of each
 * other. What the manifest doesn't name is not brought back; the first step names what the vault has of that.
 */
export function restoreModels(
	context: StepContext,
	target: ModelsTarget,
	{ models }: Manifest,
	options: HealModelsOptions,
): ModelSteps {
	const right = new Set<string>()
	const said = new Map<string, Omit<SummaryRow, "artifact">>()
	let reached = false
	const place: Step = {
		id: placeStep,
		title: `the models' place is in reach (${target.name})`,
		check: async (report) => {
			await target.ready()
			await requireTempDirectory(context, options.tempDirectory)
			await noteUnlisted(context, target, models, report)
			await noteKept(target, report, context.signal)
			reached = true
			return satisfied(target.directory)
		},
		apply: async () => {},
	}
	const tools = { context, target, models, options, right, said }
	return {
		steps: [place, ...models.map((entry) => modelStep(tools, entry))],
		rows: () => {
			if (!reached)
				return [
					{ artifact: placeStep, source: "nowhere", snapshot: "none", verified: notLookedAt, ok: false },
				]
			return modelRows(
				models.map(({ path }) => path),
				{
					right: { paths: right, source: "in place", verified: "right already" },
					said,
					otherwise: "not right; the reason stands above",
				},
			)
		},
	}
}

const notLookedAt = "not looked at: their place is not in reach; the reason stands above"

type Tools = {
	context: StepContext
	target: ModelsTarget
	models: readonly ModelEntry[]
	options: HealModelsOptions
	right: Set<string>
	said: Map<string, Omit<SummaryRow, "artifact">>
}

function modelStep({ context, target, models, options, right, said }: Tools, entry: ModelEntry): Step {
	const { host, now, signal } = context
	const { directory } = target
	const { path } = entry
	let healed: Healed | undefined
	/** @param fresh reads every byte, whatever is remembered */
	const judge = async (wanted: ModelEntry, level: Level, report: Report, fresh = options.deep) => {
		const cache = fresh
			? undefined
			: await openDigestCache(digestCacheFile(host.path(cacheDirectory), directory), now)
		const hashing = hashingAlone({
			now,
			...(cache && { cache }),
			onProgress: (doneBytes) => report.progress({ doneBytes, from: target.name }),
		})
		return conditionOf(directory, wanted, { level, hashing, signal })
	}

	/** A link to another model of the manifest is wrong whichever of the two lies there: the other's healing changes it. */
	const look = async (report: Report): Promise<Condition> => {
		const owner = await otherModelAt(directory, entry, models)
		if (owner === undefined) return judge(entry, options.level, report)
		const because = `it leads to ${owner.path}, which is another model by the manifest`
		const verdict: Verdict = {
			...{ path, status: "broken-link", tier: "exists", because },
			...{ needed: entry.optional !== true, right: false },
		}
		return { verdict, state: "wrong", because: `broken-link: ${because}`, isMissing: false }
	}

	/** What this run has put there is read back from the disk. */
	const checkHealed = async (
		{ from, sizeBytes, digest, proof }: Healed,
		report: Report,
	): Promise<Finding> => {
		const figures = { from: "what was fetched", verified: true }
		const condition = await judge({ path, sizeBytes, sha256: digest, figures }, "digest", report, true)
		report.model({ place: target.name, ...condition.verdict, needed: entry.optional !== true })
		if (condition.state !== "right") {
			said.delete(path)
			return needed(`it is not what was just put there: ${condition.because}`)
		}
		said.set(path, {
			source: from,
			snapshot: "none",
			verified: proof,
			digest: digest.slice(0, 12),
			ok: true,
		})
		return satisfied(`${proof}; from ${from}`)
	}

	return {
		id: stepOf(path),
		title: stepOf(path),
		requires: [placeStep],
		check: async (report) => {
			if (healed !== undefined) return checkHealed(healed, report)
			const condition = await look(report)
			report.model({ place: target.name, ...condition.verdict })
			if (condition.state === "wrong") {
				await requireWritable(join(directory, path))
				return searched(entry, condition, await modelSources(context, target, options), options)
			}
			if (condition.state === "doubtful") {
				report.warn(condition.because)
				said.set(path, { source: "in place", snapshot: "none", verified: condition.because, ok: false })
			} else right.add(path)
			return satisfied(condition.because)
		},
		apply: async (report) => {
			await target.ready()
			await using _lock = await lockFile(host, join(directory, lockName), {
				purpose: `putting ${path} right on ${host.name}`,
				shown: `the lock of the models on ${target.name}`,
			})
			// Another host may have been at it.
			if ((await look(report)).state !== "wrong") return
			const { tempDirectory, limitBytesPerSecond } = options
			healed = await healModel({
				directory,
				entry,
				models,
				sources: await modelSources(context, target, options),
				now,
				signal,
				report,
				...(tempDirectory === undefined ? {} : { tempDirectory: host.path(tempDirectory) }),
				...(limitBytesPerSecond === undefined ? {} : { limitBytesPerSecond }),
			}).catch((error: unknown) => {
				if (!(error instanceof OperatorError) || error.hint !== undefined) throw error
				const { message, exitCode, cause } = error
				const hint = publishedWhere(entry, options)
				throw new OperatorError(message, { exitCode, cause, ...(hint === undefined ? {} : { hint }) })
			})
			const { sizeBytes, transferredBytes, from } = healed
			if (transferredBytes < sizeBytes)
				report.note(`${formatBytes(transferredBytes)} of ${formatBytes(sizeBytes)} came from ${from}`)
		},
	}
}

/** What would be fetched, and from where; unknown when nobody is seen to have it. */
async function searched(
	entry: ModelEntry,
	{ because, isMissing }: { because: string; isMissing: boolean },
	sources: readonly ModelSource[],
	options: HealModelsOptions,
): Promise<Finding> {
	const reasons: string[] = []
	let hint: string | undefined
	for (const source of sources) {
		try {
			const offer = await source.find(entry)
			const weighed = offer === undefined ? undefined : expectationOf(entry, offer)
			if (offer === undefined || weighed === undefined) reasons.push(`${source.name} doesn't have it`)
			else if ("refused" in weighed) reasons.push(`${source.name}: ${weighed.refused}`)
			else {
				const size = formatBytes(offer.bytes.sizeBytes)
				const inBlocks = !isMissing && weighed.expectation.blocks !== undefined
				return needed(
					`${because}; ${offer.bytes.name} has ${inBlocks ? `its ${size}, of which the damaged blocks are fetched` : `it: ${size}`}`,
				)
			}
		} catch (error) {
			if (!(error instanceof OperatorError)) throw error
			hint ??= error.hint
			reasons.push(`${source.name}: ${messageOf(error)}`)
		}
	}
	const searchedIn = reasons.length === 0 ? "no source is configured" : reasons.join("; ")
	return unknown(`${because}; ${searchedIn}`, publishedWhere(entry, options) ?? hint)
}

/** What else can be tried; where the manifest knows no address of the file itself, a person has to look. */
function publishedWhere(
	{ url, repository, path }: ModelEntry,
	{ fromOrigin, again }: HealModelsOptions,
): string | undefined {
	if (url !== undefined) return fromOrigin ? undefined : `${again} --from-origin`
	if (repository === undefined) return undefined
	return `look in https://huggingface.co/${repository}; what belongs there is ${path}`
}

/** Said before anything is fetched, in a dry run too. @throws {OperatorError} for what the system refuses */
async function requireWritable(file: string): Promise<void> {
	for (let place = dirname(file); ; place = dirname(place)) {
		try {
			return await access(place, constants.W_OK)
		} catch (error) {
			// What isn't there yet is made in the next one above.
			if (codeOf(error) !== "ENOENT" || place === dirname(place))
				throw systemError(error, `writing to ${place}`)
		}
	}
}

/** Each healing keeps what stood there, and nobody removes it by itself. */
async function noteKept({ directory }: ModelsTarget, report: Report, signal: AbortSignal): Promise<void> {
	const names = await readdir(directory, { recursive: true }).catch(() => [])
	let [count, sizeBytes] = [0, 0]
	for (const name of names) {
		signal.throwIfAborted()
		if (!/\.bad-\d{8}T\d{6}Z(-\d+)?$/.test(name)) continue
		const facts = await lstat(join(directory, name)).catch(() => undefined)
		count += facts === undefined ? 0 : 1
		sizeBytes += facts?.size ?? 0
	}
	if (count > 0)
		report.note(
			`${count} set-aside ${count === 1 ? "copy takes" : "copies take"} ${formatBytes(sizeBytes)}; when nobody needs them: find '${directory}' -regextype posix-extended -regex '.*\\.bad-[0-9]{8}T[0-9]{6}Z(-[0-9]+)?' -delete`,
		)
}

async function requireTempDirectory({ host }: StepContext, tempDirectory: string | undefined): Promise<void> {
	if (tempDirectory === undefined) return
	const facts = await stat(host.path(tempDirectory)).catch(() => undefined)
	if (facts?.isDirectory() === true) return
	throw new OperatorError(`there is no directory ${tempDirectory} on ${host.name} to fetch models to`, {
		exitCode: exitCodes.usage,
		hint: `mkdir ${tempDirectory}`,
	})
}

/** A backup stores every model; the manifest alone says which ones must be there. */
async function noteUnlisted(
	{ openModels }: StepContext,
	target: ModelsTarget,
	models: readonly ModelEntry[],
	report: Report,
): Promise<void> {
	const vault = (await openModels()).find(({ name }) => name === "r2" && name !== target.name)
	if (vault === undefined || vault.trouble !== undefined) return
	const known = new Set(models.map(({ path }) => path))
	const unlisted: string[] = []
	for await (const { key } of vault.store.list("")) if (!known.has(key)) unlisted.push(key)
	if (unlisted.length > 0)
		report.note(
			`the manifest doesn't name ${unlisted.length} that r2 has, and they are not brought back: ${unlisted.slice(0, 5).join(", ")}${unlisted.length > 5 ? ", …" : ""}`,
		)
}

/**
 * Verify, put right what is not, verify again: `verify-models --heal`.
 * @param options.directory a directory of this machine instead of the environment's share
 */
export async function planHeal(
	context: StepContext,
	manifest: Manifest,
	options: HealModelsOptions & { directory?: string },
): Promise<Plan> {
	const { environment, hostConfiguration, place } = context
	const target = options.directory === undefined ? shareTarget(context) : directoryTarget(options.directory)
	const { steps, rows } = restoreModels(context, target, manifest, options)
	return {
		command: "verify-models",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		steps,
		summary: rows,
		next: ({ exitCode, dryRun }) => (dryRun || exitCode !== exitCodes.done ? options.again : undefined),
	}
}
