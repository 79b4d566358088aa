// What a worker that fetches its jobs says it made, brought into the user's outputs. Its word is taken for where to look
// and for nothing else: each path is checked, opened part by part below the share's root, and judged by its content.
import { messageOf, OperatorError } from "../../lib/errors.ts"
import type { Attribution } from "./attribution.ts"
import { type DeliveryOptions, deliverFile } from "./deliver.ts"
import { FileTrouble } from "./file-pool.ts"
import { partsOf } from "./held-files.ts"
import type { Inspection } from "./operations.ts"
import type { Clock } from "./watch.ts"

export type WorkerOutputsOptions = DeliveryOptions & {
	clock: Clock
	/** How long a file that isn't seen, or isn't whole, is waited for: a listing on NFS may lag; 15 000. */
	waitMs?: number
	/** After which the rest is given up; 45 000, since workers wait a minute for their answer. */
	mostMs?: number
	/** A picture carried another job's prompt and was put aside. */
	onQuarantined?: () => void
}

export type WorkerDelivery = {
	/** With names as they are in the user's directory, and what was not delivered named under `undelivered`. */
	result: Record<string, unknown>
	delivered: readonly string[]
	undelivered: readonly { file: string; because: string }[]
	/** Why the job counts as failed: a node has no file that could be delivered. */
	failure: string | undefined
	/** The attempt's own directory, to be removed when the end is recorded. */
	directory: string | undefined
}

/** @param submission from 1, of an attempt that was handed over more than once */
type Job = { id: string; user: string; attempt: number; submission?: number }

/** The name of the attempt's directory in the job's. */
const attemptOf = ({ attempt, submission = 1 }: Job) =>
	submission === 1 ? `a${attempt}` : `a${attempt}-${submission}`
type Named = { filename: string } & Record<string, unknown>

/**
 * Delivers the files that a result names.
 * @param result `{outputs: {node: {kind: [{filename, subfolder, type}]}}, output_path?}`; it is not changed
 */
export async function deliverWorkerOutputs(
	options: WorkerOutputsOptions,
	job: Job,
	result: Record<string, unknown>,
): Promise<WorkerDelivery> {
	const { clock, shareRoot, mostMs = 45_000 } = options
	const untilMs = clock.nowMs() + mostMs
	const delivered: string[] = []
	const undelivered: { file: string; because: string }[] = []
	const bare: string[] = []
	// A node may be called anything, `__proto__` too.
	const outputs: Record<string, unknown> = Object.create(null) as Record<string, unknown>
	let directory: string | undefined
	for (const [node, kinds] of Object.entries(isRecord(result["outputs"]) ? result["outputs"] : {})) {
		if (!isRecord(kinds)) continue
		const own: Record<string, unknown> = Object.create(null) as Record<string, unknown>
		let wanted = 0
		let got = 0
		for (const [kind, values] of Object.entries(kinds)) {
			if (!Array.isArray(values)) {
				own[kind] = values
				continue
			}
			const kept: unknown[] = []
			for (const value of values as unknown[]) {
				if (!isNamed(value)) {
					kept.push(value)
					continue
				}
				// Previews lie in the worker's temporary directory and are nobody's result.
				if ((value["type"] ?? "output") !== "output") continue
				wanted++
				try {
					const at = placeOf(job, shareRoot, result["output_path"], value)
					const filename = await bring(options, job, node, at, untilMs)
					if (at.isOwn) directory = at.directory
					got++
					delivered.push(filename)
					kept.push({ ...value, filename, subfolder: job.user, type: "output" })
				} catch (error) {
					undelivered.push({ file: value.filename.slice(0, 200), because: messageOf(error) })
				}
			}
			if (kept.length > 0 || values.length === 0) own[kind] = kept
		}
		if (wanted > 0 && got === 0) bare.push(node)
		if (Object.keys(own).length > 0) outputs[node] = own
	}
	const said = undelivered.map(({ file, because }) => `${file}: ${because}`).join("; ")
	return {
		result: {
			...result,
			...("outputs" in result && { outputs }),
			// Where it lay is no business of the client's, and the path is the worker's word alone.
			...("output_path" in result && { output_path: null }),
			...(undelivered.length > 0 && { undelivered }),
		},
		delivered,
		undelivered,
		failure:
			bare.length === 0
				? undefined
				: `node ${bare.join(", ")} has no file that could be delivered: ${said}`.slice(0, 4000),
		directory,
	}
}

type At = { directory: string; name: string; isOwn: boolean }

/** Where a file is to lie below the share's root. @throws {OperatorError} for a path that may lead elsewhere */
export function placeOf(
	job: Job,
	shareRoot: string,
	outputPath: unknown,
	{ filename, subfolder }: Named,
): At {
	const root = shareRoot.replace(/\/+$/, "")
	const given = typeof outputPath === "string" ? outputPath.replace(/\/+$/, "") : ""
	// The same share may be mounted elsewhere on the worker; then what follows is meant from the root on.
	const below = given.startsWith(`${root}/`) ? given.slice(root.length + 1) : ""
	const middle = typeof subfolder === "string" ? subfolder : ""
	const directory = [below, middle].filter((part) => part !== "").join("/")
	if (filename.includes("/")) throw new OperatorError("a file's name has no / in it")
	partsOf(directory === "" ? filename : `${directory}/${filename}`)
	const isOwn = new RegExp(`^cq/\\d{8}/${job.id}/${attemptOf(job)}$`).test(directory)
	if (directory.split("/")[0] === "cq" && !isOwn)
		throw new OperatorError(`${directory} is not the directory of this attempt`)
	return { directory, name: filename, isOwn }
}

async function bring(
	options: WorkerOutputsOptions,
	job: Job,
	node: string,
	{ directory, name, isOwn }: At,
	untilMs: number,
): Promise<string> {
	const { clock, waitMs = 15_000, records, shareRoot } = options
	const attempt = `${attemptOf(job)}${isOwn || directory === "" ? "" : `/${directory}`}`
	const before = await records.find({ job: job.id, attempt, file: name })
	if (before?.state === "delivered") return before.filename
	const path = directory === "" ? name : `${directory}/${name}`
	const until = Math.min(untilMs, clock.nowMs() + waitMs)
	const inspection = await inspected(options, { root: shareRoot, path }, until)
	const facts = { ...inspection, name, kind: "file" as const, links: 1 }
	const file = {
		...{ name, node, finding: inspection.finding, inspection, facts, isMissing: false },
		...{ changedAtMs: clock.nowMs(), inspectedAtMs: clock.nowMs() },
	}
	const plan = { directory, prompt: {}, extraData: undefined, nodes: [] }
	const origin = (prompt: Inspection["prompt"]) =>
		isOwn ? writtenInto(prompt, directory) : ranIn(prompt, job)
	const found = isOwn ? undefined : origin(inspection.prompt)
	// Where others write too, a file that isn't ours stays where it is: its own job may yet ask for it.
	if (found?.state === "foreign") throw new OperatorError(found.because)
	const delivery = await deliverFile(options, { job: job.id, attempt, user: job.user, plan, origin }, file)
	if (delivery.state === "quarantined") options.onQuarantined?.()
	if (delivery.state !== "delivered") throw new OperatorError(delivery.because)
	return delivery.filename
}

/** Looks until the file is whole. What has no known structure is taken as it is: its writer says that it is done. */
async function inspected(
	{ files, clock }: WorkerOutputsOptions,
	place: { root: string; path: string },
	untilMs: number,
): Promise<Inspection> {
	for (;;) {
		let because: string
		try {
			const inspection = await files.inspect(place)
			const { finding, sizeBytes } = inspection
			if (finding.state === "whole" || (finding.state === "unknown" && sizeBytes > 0)) return inspection
			because = "because" in finding ? finding.because : "it is empty"
		} catch (error) {
			if (!(error instanceof FileTrouble)) throw error
			because = error.code === "ENOENT" ? "it is not on the share" : error.message
			if (error.code === undefined) throw error
		}
		if (clock.nowMs() >= untilMs) throw new OperatorError(because)
		await clock.wait(Math.min(500, untilMs - clock.nowMs()))
	}
}

/** A picture that carries its prompt must have been written into this attempt's directory. */
function writtenInto(prompt: Inspection["prompt"], directory: string): Attribution {
	if (prompt.state !== "read") return { state: "unchecked" }
	if (prefixesOf(prompt.text).some((prefix) => prefix.startsWith(`${directory}/`))) return { state: "own" }
	return { state: "foreign", because: "the prompt in it writes elsewhere: it is another job's" }
}

/**
 * Outside of the attempts' directories names are counted and reused by everybody. What lies there is this job's only
 * when it carries the prompt that was handed out for this attempt, which no other attempt had.
 */
function ranIn(prompt: Inspection["prompt"], job: Job): Attribution {
	const own = new RegExp(`^cq/\\d{8}/${job.id}/${attemptOf(job)}/`)
	if (prompt.state === "read" && prefixesOf(prompt.text).some((prefix) => own.test(prefix)))
		return { state: "own" }
	const what = prompt.state === "read" ? "the prompt in it is another's" : "it carries no prompt"
	return {
		state: "foreign",
		because: `nothing proves that it is this job's: it lies outside of the attempt's directory, and ${what}`,
	}
}

/** Where the nodes of a prompt write; none where it is no JSON. */
function prefixesOf(text: string): string[] {
	let parsed: unknown
	try {
		parsed = JSON.parse(text)
	} catch {
		return []
	}
	const nodes = isRecord(parsed) ? Object.values(parsed) : []
	return nodes.flatMap((one) => {
		const inputs = isRecord(one) ? one["inputs"] : undefined
		const prefix = isRecord(inputs) ? inputs["filename_prefix"] : undefined
		return typeof prefix === "string" ? [prefix] : []
	})
}

function isRecord(value: unknown): value is Record<string, unknown> {
	return typeof value === "object" && value !== null && !Array.isArray(value)
}

function isNamed(value: unknown): value is Named {
	return isRecord(value) && typeof value["filename"] === "string"
}
