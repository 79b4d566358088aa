// The report on backups, in Markdown: what is missing first. Pure: facts go in, a text comes out.
import { formatBytes, formatDuration, formatSeconds, printable } from "../ui/format.ts"
import type { DrillRecord } from "./drill-record.ts"

/** One artifact in one destination. */
export type ReportedArtifact = {
	artifact: string
	destination: string
	/** As the catalogue says when it is due. */
	schedule: string
	ok: boolean
	/** What is wrong, or how fresh it is. */
	because: string
	newest?: { id: string; takenAt: Date; digest: string; sizeBytes?: number }
	/** Since when the newest state is known to be the newest. */
	ageSeconds?: number
	/** Finished ones by their names; classes as they keep them. */
	snapshots: { count: number; daily: number; weekly: number; monthly: number; oldest?: Date }
	/** What no class keeps, where nothing is deleted. */
	eligible?: { count: number; sizeBytes: number }
}

export type ReportedDestination = {
	name: string
	place: string
	/** Why it can't be read; then the figures say nothing. */
	trouble?: string
	objects: number
	sizeBytes: number
	/** Of what was stored in the last 30 days and still stands. */
	recentBytes: number
	freeBytes?: number
	/** What was begun and not finished: uploads in parts, archives without a sidecar. */
	unfinished: readonly { what: string; since: Date }[]
}

export type ReportFacts = {
	environment: string
	host: string
	at: Date
	comfyume: string
	artifacts: readonly ReportedArtifact[]
	destinations: readonly ReportedDestination[]
	/** The share's models against their bucket, where models are backed up. */
	models?: { ok: boolean; because: string }
	/** Newest first. */
	drills: readonly DrillRecord[]
	/** Set when some artifact has no good drill of late. */
	overdueDrills?: string
}

/** @returns Markdown; ends with a line feed */
export function renderReport(facts: ReportFacts): string {
	const { environment, host, at, comfyume } = facts
	const sections = [
		`# Backups of ${text(host)}, ${text(environment)}`,
		`${minute(at)} UTC, by comfyume ${text(comfyume)}.`,
		"## What is missing",
		missing(facts),
		"## What there is",
		artifactsTable(facts),
		"## How much there is",
		destinationsTable(facts),
		"## Drills",
		drills(facts),
		"## What was begun and not finished",
		unfinished(facts),
		...eligible(facts),
	]
	return `${sections.join("\n\n")}\n`
}

function missing({ artifacts, destinations, models, overdueDrills }: ReportFacts): string {
	const lines = [
		...destinations.flatMap(({ name, trouble }) =>
			trouble === undefined ? [] : [`**${name}** can't be read: ${text(trouble)}`],
		),
		...artifacts
			.filter(({ ok }) => !ok)
			.map(
				({ artifact, destination, because }) => `**${text(artifact)} on ${destination}**: ${text(because)}`,
			),
		...(models === undefined || models.ok ? [] : [`**models**: ${text(models.because)}`]),
		...(overdueDrills === undefined ? [] : [text(overdueDrills)]),
	]
	return lines.length === 0
		? "Nothing: all that is scheduled is there, and in time."
		: lines.map((line) => `- ${line}`).join("\n")
}

function artifactsTable({ artifacts, models }: ReportFacts): string {
	const rows = artifacts.map(({ artifact, destination, newest, ageSeconds, schedule, snapshots }) => [
		artifact,
		destination,
		newest === undefined ? "none" : minute(newest.takenAt),
		ageSeconds === undefined ? "" : formatSeconds(ageSeconds),
		newest?.sizeBytes === undefined ? "" : formatBytes(newest.sizeBytes),
		newest?.digest.slice(0, 12) ?? "",
		schedule,
		String(snapshots.count),
		`${snapshots.daily} / ${snapshots.weekly} / ${snapshots.monthly}`,
		snapshots.oldest === undefined ? "" : day(snapshots.oldest),
	])
	const headings = [
		...["artifact", "on", "newest (UTC)", "age", "size", "digest", "due"],
		...["snapshots", "daily / weekly / monthly", "oldest"],
	]
	const said =
		"The age is that of the state: what is found unchanged is as young as when it was last found so."
	return [
		table(headings, rows),
		said,
		...(models === undefined ? [] : [`Models: ${text(models.because)}.`]),
	].join("\n\n")
}

function destinationsTable({ destinations }: ReportFacts): string {
	const rows = destinations.map(({ name, place, trouble, objects, sizeBytes, recentBytes, freeBytes }) =>
		trouble === undefined
			? [
					name,
					place,
					String(objects),
					bytes(sizeBytes),
					bytes(recentBytes),
					freeBytes === undefined ? "" : formatBytes(freeBytes),
				]
			: [name, place, "", "", "", ""],
	)
	const headings = ["destination", "where", "objects", "bytes", "of the last 30 days", "free"]
	return `${table(headings, rows)}\n\nOf the last 30 days is what was stored in them and still stands.`
}

function drills({ drills: records }: ReportFacts): string {
	if (records.length === 0) return "There never was one."
	const rows = records.map(({ at, exitCode, results, comfyume }) => {
		const good = results.filter(({ ok }) => ok).length
		const ages = results.flatMap(({ ageSeconds }) => ageSeconds ?? [])
		const took = results.flatMap(({ tookSeconds }) => tookSeconds ?? [])
		return [
			minute(new Date(at)),
			String(exitCode),
			`${good} of ${results.length}`,
			ages.length === 0 ? "" : formatSeconds(Math.max(...ages)),
			took.length === 0 ? "" : formatDuration(Math.max(...took) * 1000),
			formatDuration(took.reduce((sum, one) => sum + one, 0) * 1000),
			comfyume,
		]
	})
	const headings = [
		...["drilled (UTC)", "exit", "good", "oldest state (RPO)", "slowest (RTO)", "all together", "comfyume"],
	]
	return table(headings, rows)
}

function unfinished({ destinations }: ReportFacts): string {
	const lines = destinations.flatMap(({ name, unfinished: begun }) =>
		begun.map(({ what, since }) => `- ${name}: ${text(what)}, since ${minute(since)}`),
	)
	return lines.length === 0 ? "Nothing." : lines.join("\n")
}

function eligible({ artifacts }: ReportFacts): string[] {
	const judged = artifacts.filter(({ eligible: gone }) => gone !== undefined)
	if (judged.length === 0) return []
	const rows = judged.flatMap(({ artifact, destination, eligible: gone }) =>
		gone === undefined || gone.count === 0
			? []
			: [[artifact, destination, String(gone.count), bytes(gone.sizeBytes)]],
	)
	return [
		"## What the classes wouldn't keep",
		rows.length === 0 ? "Nothing." : table(["artifact", "on", "snapshots", "bytes"], rows),
		"In a bucket nothing is deleted.",
	]
}

/** To the byte, and so that it can be read. */
const bytes = (sizeBytes: number) =>
	sizeBytes < 1024 ? `${sizeBytes}` : `${sizeBytes} (${formatBytes(sizeBytes)})`

const day = (at: Date) => at.toISOString().slice(0, 10)
const minute = (at: Date) => at.toISOString().slice(0, 16).replace("T", " ")

/** One line that Markdown takes as what it says. */
const text = (said: string) => printable(said).replaceAll(/[\\`*_<>[\]]/g, "\\$&")

const table = (headings: readonly string[], rows: readonly (readonly string[])[]) =>
	[headings, headings.map(() => "---"), ...rows]
		.map((cells) => `| ${cells.map((cell) => (cell === "---" ? cell : cellText(cell))).join(" | ")} |`)
		.join("\n")

const cellText = (cell: string) => text(cell).replaceAll("|", "\\|")
