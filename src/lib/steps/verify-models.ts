// What verify-models asks of an environment, as steps that only check: the models of the share, those of the object
// store, and what the frontends see of them.
import { access } from "node:fs/promises"
import { basename, join } from "node:path"
import type { Source, SourceName } from "../artifacts/source.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { type Comparison, comparePlaces, type Listing } from "../models/compare.ts"
import { compareViews, findFrontends, listInContainer } from "../models/containers.ts"
import { openHashing } from "../models/hashing.ts"
import { listSizes } from "../models/list-sizes.ts"
import type { Manifest } from "../models/manifest.ts"
import { judgeModelPaths, judgeWorkflows, type NeedsFiles } from "../models/needs-report.ts"
import { listObjects, verifyObjects } from "../models/remote.ts"
import type { Scrub } from "../models/scrub.ts"
import { keptAside, tally } from "../models/tally.ts"
import { type Level, type Verdict, verifyModels } from "../models/verify.ts"
import { needed, type Plan, type Report, type Step, satisfied, unknown } from "../plan/step.ts"
import type { ObjectHead } from "../storage/object-store.ts"
import type { StepContext } from "./context.ts"
import { spokenWords, wordsOfManifest } from "./heal-options.ts"
import { once, shareDirectory } from "./open.ts"

export type ModelsRequest = {
	level: Level
	/** Read every byte, whatever is remembered; in the object store only where that alone was asked for. */
	deep: boolean
	scrub?: Scrub
	/** The places to look at; all that are configured without it. */
	from?: "share" | "r2" | "both"
	/** Frontends to look into; those that run, without it. */
	containers: readonly string[]
	/** The manifest's file as the operator named it, for commands to type next. */
	manifest?: string
}

/** On the host; digests of the share's models are remembered here. */
export const cacheDirectory = "/var/lib/comfyume/digests"

/**
 * The checks of all places of models.
 * @throws {OperatorError} (2) when the environment has no such place
 */
export async function modelChecks(
	context: StepContext,
	manifest: Manifest,
	request: ModelsRequest,
	{ workflows, modelPaths }: NeedsFiles = {},
): Promise<Step[]> {
	const sources = await context.openModels()
	const names = sources.map(({ name }) => name)
	const wanted = request.from === "both" ? ["share", "r2"] : request.from === undefined ? [] : [request.from]
	const absent = wanted.filter((name) => !names.some((known) => known === name))
	if (absent.length > 0 || sources.length === 0)
		throw new OperatorError(
			`${context.environment.name} has no models ${absent.length > 0 ? `in ${absent.join(", ")}` : "anywhere"}`,
			{ exitCode: exitCodes.usage, hint: "give it a share, or objectStore.buckets.models, in comfyume.yaml" },
		)
	const world = openWorld(context, sources, manifest)
	const digests = new Map<string, string>()
	const steps = sources.map((source) =>
		source.name === "share"
			? shareStep(context, source, { manifest, request, world, digests })
			: bucketStep(context, source, { manifest, request, world, digests }),
	)
	const view = await viewStep(context, sources, { request, world })
	return [
		...steps,
		...(view === undefined ? [] : [view]),
		...(workflows === undefined ? [] : [workflowsStep(workflows, manifest, world)]),
		...(modelPaths === undefined ? [] : [modelPathsStep(modelPaths, manifest)]),
	]
}

/** A plan that looks at all places and changes nothing. */
export async function verifyModelsPlan(
	context: StepContext,
	manifest: Manifest,
	request: ModelsRequest,
	needs: NeedsFiles = {},
): Promise<Plan> {
	const { environment, hostConfiguration, place } = context
	return {
		command: "verify-models",
		environment: environment.name,
		host: hostConfiguration.name,
		place,
		steps: await modelChecks(context, manifest, request, needs),
		next: ({ exitCode }) => {
			if (exitCode !== exitCodes.done || request.level === "digest") return undefined
			const { from, manifest: named, containers } = request
			const words = [
				...["--level", "digest"],
				...(from === undefined ? [] : ["--from", from]),
				...wordsOfManifest(named),
				...(containers.length === 0 ? [] : ["--container", containers.join(",")]),
			]
			return `comfyume verify-models ${context.spoken} ${spokenWords(words)}`
		},
	}
}

type World = {
	share: () => Promise<Map<string, number | undefined>>
	objects: () => Promise<Map<string, ObjectHead>>
	/** All places that can be listed, held against each other; one that can't be is the business of its own step. */
	comparison: () => Promise<Comparison>
	directory: string
	/** What was found in each place, by the steps that have looked. */
	found: Map<SourceName, readonly Verdict[]>
}

function openWorld(context: StepContext, sources: readonly Source[], manifest: Manifest): World {
	const { environment, host, signal } = context
	const directory = environment.share === undefined ? "" : join(...shareDirectory(host, environment.share))
	const share = once(() => listShare(directory, signal))
	const r2 = sources.find(({ name }) => name === "r2")
	const objects = once(async () => {
		if (r2 === undefined) throw new Error("there is no object store")
		if (r2.trouble !== undefined) throw r2.trouble
		return listObjects(r2.store)
	})
	const comparison = once(async () => {
		const listings = await Promise.all(
			sources.map(async ({ name, trouble }): Promise<Listing[]> => {
				if (trouble !== undefined) return []
				try {
					if (name === "share") return [{ place: name, files: await share() }]
					const heads = [...(await objects())].map(([key, { sizeBytes }]): [string, number] => [
						key,
						sizeBytes,
					])
					return [{ place: name, files: new Map(heads) }]
				} catch {
					return []
				}
			}),
		)
		return comparePlaces(listings.flat(), manifest.models)
	})
	return { share, objects, comparison, directory, found: new Map() }
}

/** Path -> size; undefined for a link that leads nowhere and for what is no file. */
function listShare(directory: string, signal: AbortSignal): Promise<Map<string, number | undefined>> {
	return listSizes(directory, signal).catch((error: unknown) => {
		if (!(error instanceof OperatorError) || error.exitCode !== exitCodes.usage) throw error
		// Here it is not a word on the command line that is wrong, but the share.
		throw new OperatorError(error.message, {
			hint: `findmnt --target ${directory}; compare share.models in comfyume.yaml`,
		})
	})
}

type PlaceOptions = {
	manifest: Manifest
	request: ModelsRequest
	world: World
	/** What the share's bytes came to, for the object store to be held against. */
	digests: Map<string, string>
}

function shareStep(context: StepContext, source: Source, options: PlaceOptions): Step {
	const { manifest, request, world, digests } = options
	return placeStep(context, source, "models on the share", options, async function* (report) {
		const listed = await world.share()
		const kept = keptAside(listed)
		if (kept !== undefined) report.note(kept)
		const hashing =
			request.level === "digest"
				? await openHashing({
						directory: world.directory,
						cacheDirectory: context.host.path(cacheDirectory),
						files: listed,
						models: manifest.models,
						deep: request.deep,
						...(request.scrub && { scrub: request.scrub }),
						now: context.now,
						onProgress: (progress) => report.progress({ ...progress, from: "share" }),
					})
				: undefined
		try {
			for await (const verdict of verifyModels(world.directory, manifest.models, {
				level: request.level,
				listed: listed.keys(),
				...(hashing && { hashing }),
				signal: context.signal,
			})) {
				if (verdict.sha256 !== undefined) digests.set(verdict.path, verdict.sha256)
				yield verdict
			}
		} finally {
			for (const note of (await hashing?.close()) ?? []) report.note(note)
		}
	})
}

function bucketStep(context: StepContext, source: Source, options: PlaceOptions): Step {
	const { manifest, request, world, digests } = options
	return placeStep(context, source, "models in R2", options, async function* (report) {
		const heads = await world.objects()
		const deep = request.deep && request.from === "r2"
		if (request.level === "digest" && !deep)
			report.note("digests are those that were noted when the models were stored; only reading proves them")
		let doneBytes = 0
		yield* verifyObjects(source.store, heads, manifest.models, {
			level: request.level,
			deep,
			digestElsewhere: (path) => digests.get(path),
			signal: context.signal,
			onBytes: (bytes) => {
				doneBytes += bytes
				report.progress({ doneBytes, from: "r2" })
			},
			now: context.now,
		})
	})
}

/** The step of one place: each verdict is compared with the other places, told, and counted. */
function placeStep(
	context: StepContext,
	{ name, store, trouble }: Source,
	title: string,
	{ manifest, request, world }: PlaceOptions,
	verdicts: (report: Report) => AsyncGenerator<Verdict>,
): Step {
	const entries = new Map(manifest.models.map((entry) => [entry.path, entry]))
	return {
		id: `models-${name}`,
		title,
		async check(report) {
			if (trouble !== undefined) throw trouble
			const { compare } = await world.comparison()
			const found: Verdict[] = []
			for await (const judged of verdicts(report)) {
				const verdict = compare(name, judged, entries.get(judged.path))
				found.push(verdict)
				report.model({ place: name, ...verdict })
			}
			world.found.set(name, found)
			const { none, wrong, text, named } = tally(found)
			if (none) return needed(`there is no model in ${store.place}`, `findmnt --target ${store.place}`)
			if (!wrong) return satisfied(text)
			return needed(`${text}: ${named}`, nextOf(context, name, request))
		},
		apply: () => Promise.reject(new Error("looking changes nothing")),
	}
}

/** The share can be put right; what is wrong in the object store can only be looked at. */
function nextOf({ spoken }: StepContext, place: SourceName, { level, manifest }: ModelsRequest): string {
	const words = [
		...wordsOfManifest(manifest),
		...(place === "share" ? ["--level", level, "--heal", "--dry-run"] : ["--from", "r2", "--json"]),
	]
	return `comfyume verify-models ${spoken} ${spokenWords(words)}`
}

/** Frontends and workers read models from the share; what R2 has is of no use to a workflow until it is there. */
function workflowsStep(
	{ directory, texts }: NonNullable<NeedsFiles["workflows"]>,
	manifest: Manifest,
	{ found }: World,
): Step {
	return {
		id: "workflows",
		title: "workflows and the models they need",
		async check(report) {
			const verdicts = found.get("share") ?? found.get("r2")
			if (verdicts === undefined)
				return unknown("no place of models could be looked at, so nobody knows what workflows have")
			const said = judgeWorkflows(texts, { directory, models: manifest.models, verdicts })
			for (const facts of said.facts) report.workflow(facts)
			for (const note of said.notes) report.note(note)
			return said.right ? satisfied(said.text) : needed(said.text, said.hint)
		},
		apply: () => Promise.reject(new Error("looking changes nothing")),
	}
}

function modelPathsStep(file: NonNullable<NeedsFiles["modelPaths"]>, manifest: Manifest): Step {
	return {
		id: "model-paths",
		title: "where ComfyUI looks for models",
		async check(report) {
			const said = judgeModelPaths(file, manifest.models)
			for (const facts of said.facts) report.modelPaths(facts)
			return said.right ? satisfied(said.text) : needed(said.text)
		},
		apply: () => Promise.reject(new Error("looking changes nothing")),
	}
}

async function viewStep(
	{ host, signal, environment }: StepContext,
	sources: readonly Source[],
	{ request, world }: { request: ModelsRequest; world: World },
): Promise<Step | undefined> {
	const share = sources.find(({ name, trouble }) => name === "share" && trouble === undefined)
	if (share === undefined && request.containers.length > 0)
		throw new OperatorError("--container compares with the share, and the share can't be looked at", {
			exitCode: exitCodes.usage,
			hint: "add --from share, and see that it is mounted: findmnt -t nfs4",
		})
	if (share === undefined) return undefined
	// A directory that stands in for a machine has no say about the containers of the machine it lies on.
	const ours = !host.standIn || (await exists(host.path("/usr/local/bin/docker")))
	const containers =
		request.containers.length > 0 ? request.containers : ours ? await findFrontends(host) : []
	if (containers.length === 0) return undefined
	const below = basename(environment.share?.models ?? "")
	return {
		id: "models-frontends",
		title: `models as ${containers.length === 1 ? containers[0] : `${containers.length} frontends`} see them`,
		async check(report) {
			const listed = await world.share()
			const views = new Map<string, ReadonlyMap<string, number>>()
			for (const container of containers) {
				signal.throwIfAborted()
				views.set(container, await listInContainer(host, container, below))
			}
			const stale = new Set<string>()
			for (const { path, status, because, containers: which } of compareViews(views, listed)) {
				for (const container of which) stale.add(container)
				const found = { path, status, tier: "exists", because, needed: false, right: false }
				report.model({ place: "frontends", ...found })
			}
			const blind = [...stale].filter((container) => views.get(container)?.size === 0)
			if (stale.size === 0) return satisfied(`${containers.join(", ")}: all that the share has`)
			const because =
				blind.length > 0
					? `no model at all is seen by ${blind.join(", ")}: started before the share was mounted`
					: `${[...stale].join(", ")}: a stale listing of the share`
			return needed(because, `docker restart ${[...stale].join(" ")}`)
		},
		apply: () => Promise.reject(new Error("looking changes nothing")),
	}
}

const exists = (path: string) =>
	access(path).then(
		() => true,
		() => false,
	)
