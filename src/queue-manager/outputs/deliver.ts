// Brings a file into its user's outputs, exactly once, also when it is ended at any moment and run again: a name is
// reserved, the file copied to a hidden one beside it, read back, and then given its name, which never replaces
// anything. Where it is found to have that name already, the content says that it is ours.
import { createHash } from "node:crypto"
import { OperatorError } from "../../lib/errors.ts"
import { type Attribution, attribute } from "./attribution.ts"
import type { Files } from "./file-pool.ts"
import { knownEndings, type OutputKey, sortFile } from "./kinds.ts"
import type { Copied, Inspection } from "./operations.ts"
import type { OutputPlan } from "./prefix.ts"
import type { DeliveryId, DeliveryRecord, DeliveryRecords } from "./records.ts"
import type { WatchedFile } from "./watch.ts"

export type DeliveryOptions = {
	files: Files
	records: DeliveryRecords
	shareRoot: string
	/** The directory that holds the users' directories. */
	outputsRoot: string
	randomId: () => string
	/** The largest file that is delivered; 20 GiB. */
	mostBytes?: number
	/** Endings that are delivered, of those known; all. */
	endings?: readonly string[]
}

export type DeliveryJob = {
	job: string
	attempt: string
	user: string
	plan: OutputPlan
	/** Whose a picture is; without it, whose the plan says. */
	origin?: (prompt: Inspection["prompt"]) => Attribution
}

export type Delivery =
	| { state: "delivered"; node: string; key: OutputKey; isFilm: boolean; filename: string; isFirst: boolean }
	| { state: "refused" | "quarantined"; node: string; file: string; because: string }

/** Where files lie that carry another job's prompt, below the root of outputs on the share. */
export const quarantineDirectory = "cq/quarantine"

const gibibyte = 1024 ** 3
const slowestBytesPerMs = 1000

/**
 * Delivers one file that was found whole and quiet.
 * @throws what the file systems and the records throw; run it again then
 */
export async function deliverFile(
	options: DeliveryOptions,
	job: DeliveryJob,
	file: WatchedFile,
): Promise<Delivery> {
	const { node, name, inspection } = file
	if (!/^[a-zA-Z0-9_-]{1,100}$/.test(job.user))
		throw new OperatorError("a user's id can't be a directory's name")
	const refuse = (because: string): Delivery => ({ state: "refused", node, file: name, because })
	if (inspection === undefined) return refuse("it was never read")
	const classType = job.plan.prompt[node]?.class_type ?? ""
	const sorted = sortFile(
		{ name, kind: inspection.finding.kind, classType },
		new Set(options.endings ?? knownEndings),
	)
	if (sorted.state === "refused") return refuse(sorted.because)
	const mostBytes = options.mostBytes ?? 20 * gibibyte
	if (inspection.sizeBytes > mostBytes)
		return refuse(`it has ${inspection.sizeBytes} bytes, ${mostBytes} are the most`)
	const id: DeliveryId = { job: job.job, attempt: job.attempt, file: name }
	const given = { node, key: sorted.key, isFilm: sorted.isFilm } as const
	const before = await options.records.find(id)
	if (before?.state === "delivered") {
		await removeParts(options, job, id)
		return { state: "delivered", ...given, filename: before.filename, isFirst: false }
	}
	const origin = originOf(job, inspection.prompt, node)
	if (origin.state === "foreign") {
		await quarantine(options, job, name)
		return { state: "quarantined", node, file: name, because: origin.because }
	}
	const { filename, isFirst } = await bring(options, job, file, id, before)
	return { state: "delivered", ...given, filename, isFirst }
}

const originOf = (job: DeliveryJob, prompt: Inspection["prompt"], node: string): Attribution =>
	job.origin?.(prompt) ?? attribute(prompt, job.plan, node)

async function bring(
	{ files, records, shareRoot, outputsRoot, randomId, mostBytes = 20 * gibibyte }: DeliveryOptions,
	job: DeliveryJob,
	file: WatchedFile,
	id: DeliveryId,
	before: DeliveryRecord | undefined,
): Promise<{ filename: string; isFirst: boolean }> {
	const { user, plan } = job
	const directory = { root: outputsRoot, path: user }
	await files.makeOwn(directory)
	await removeParts({ files, outputsRoot }, job, id)
	const part = { root: outputsRoot, path: `${user}/${partPrefix(id)}${randomId()}.part` }
	const from = { root: shareRoot, path: plan.directory === "" ? file.name : `${plan.directory}/${file.name}` }
	const deadlineMs = 60_000 + Math.ceil((file.inspection?.sizeBytes ?? 0) / slowestBytesPerMs)
	const copied = await files.copy({ from, to: part, mostBytes }, { deadlineMs })
	const arrived = await files.inspect(part, { deadlineMs })
	if (copied.sizeBytes !== file.inspection?.sizeBytes || arrived.finding.state !== file.finding?.state) {
		await files.remove(part)
		throw new OperatorError(`${file.name} is no longer what was found whole; it is looked at again`)
	}
	// What was copied counts, and not what was looked at: in between another file may have taken the name.
	if (originOf(job, arrived.prompt, file.node).state === "foreign") {
		await files.remove(part)
		throw new OperatorError(`${file.name} became another job's while it was copied`)
	}
	const reserveNext = async (instead?: string): Promise<string> => {
		for (let atLeast = 1; ; ) {
			const next = nextName(nameParts(file.name), await files.names(directory), atLeast)
			const answer = await records.reserve(id, { user, node: file.node, filename: next.filename }, instead)
			if (answer !== "taken") return answer.filename
			atLeast = next.counter + 1
		}
	}
	let filename = before?.filename ?? (await reserveNext())
	while ((await files.publish({ ...part, name: filename })) === "taken") {
		if (await isOurs(files, { root: outputsRoot, path: `${user}/${filename}` }, copied, deadlineMs)) break
		filename = await reserveNext(filename)
	}
	const { sizeBytes, digest } = copied
	const completed = await records.complete({ ...id, user, node: file.node, filename, sizeBytes, digest })
	await files.remove(part)
	return { filename, isFirst: completed === "first" }
}

/** A file stands under the reserved name: put there by a run that was ended before it could say so? */
async function isOurs(
	files: Files,
	place: { root: string; path: string },
	copied: Copied,
	deadlineMs: number,
): Promise<boolean> {
	try {
		return (await files.digest(place, { deadlineMs })).digest === copied.digest
	} catch {
		return false // A link, a directory, or gone again: another name is safe in every case.
	}
}

/** Hidden, and the same for every run that brings this file, so that what was left behind is found. */
function partPrefix({ job, attempt, file }: DeliveryId): string {
	return `.cq-${createHash("sha256").update(`${job}/${attempt}/${file}`).digest("hex").slice(0, 16)}-`
}

async function removeParts(
	{ files, outputsRoot }: Pick<DeliveryOptions, "files" | "outputsRoot">,
	{ user }: DeliveryJob,
	id: DeliveryId,
): Promise<void> {
	const prefix = partPrefix(id)
	for (const name of await files.names({ root: outputsRoot, path: user }))
		if (name.startsWith(prefix)) await files.remove({ root: outputsRoot, path: `${user}/${name}` })
}

async function quarantine(
	{ files, shareRoot }: DeliveryOptions,
	{ job, attempt, plan }: DeliveryJob,
	name: string,
): Promise<void> {
	const to = `${quarantineDirectory}/${job}-${attempt}`
	await files.makeOwn({ root: shareRoot, path: to })
	await files.move({ root: shareRoot, path: `${plan.directory}/${name}`, to: `${to}/${name}` })
}

type NameParts = { base: string; suffix: string }

/** `9~Film_00001_.png` is of the base `Film` and ends in `_.png`; what has no counter gets one. */
export function nameParts(fileName: string): NameParts {
	const own = fileName.slice(fileName.indexOf("~") + 1)
	const dot = own.lastIndexOf(".")
	const [stem, ending] = dot > 0 ? [own.slice(0, dot), own.slice(dot)] : [own, ""]
	const counted = /^(.*)_\d{5,}((?:[_.-].*)?)$/su.exec(stem)
	const base = (counted?.[1] ?? stem).replaceAll(/[^\p{L}\p{N} ._()+=-]/gu, "-").replace(/^[\s.]+/, "")
	const suffix = (counted === null ? "_" : (counted[2] ?? "")).replaceAll(/[^A-Za-z0-9_.-]/g, "-")
	return { base: base === "" ? "ComfyUI" : base, suffix: `${suffix}${ending}` }
}

/** The next free name as ComfyUI counts: one above the highest counter of this base, in five digits. */
export function nextName(
	{ base, suffix }: NameParts,
	names: readonly string[],
	atLeast = 1,
): { filename: string; counter: number } {
	let counter = atLeast
	for (const name of names) {
		const digits = name.startsWith(`${base}_`) ? /^\d+/.exec(name.slice(base.length + 1))?.[0] : undefined
		if (digits !== undefined && digits.length <= 9) counter = Math.max(counter, Number(digits) + 1)
	}
	return { filename: `${base}_${String(counter).padStart(5, "0")}${suffix}`, counter }
}
