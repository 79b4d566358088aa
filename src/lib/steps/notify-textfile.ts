// A run in figures, as node_exporter's textfile collector reads them: one file per task, whole or not at all.
import type { LocalHost } from "../host/local.ts"
import type { Told } from "./notify.ts"

// The same words in every file: Prometheus wants one help text per name.
const help = {
	comfyume_last_run_timestamp_seconds: "When the task last ended.",
	comfyume_last_success_timestamp_seconds: "When it last ended with 0.",
	comfyume_exit_code: "How its last run ended.",
	comfyume_duration_seconds: "How long its last run took.",
	comfyume_stored_bytes: "What its last run stored.",
	comfyume_verified_ratio: "How many of what its last run had to do with were found right, from 0 to 1.",
	comfyume_newest_snapshot_age_seconds: "How old the newest snapshot was when it was last looked at.",
	comfyume_newest_snapshot_timestamp_seconds: "When the newest snapshot was taken.",
} as const

type Name = keyof typeof help
type Labels = Readonly<Record<string, string>>
type Sample = { name: Name; labels: Labels; value: number }

/** The task's file on the host. */
export const textfileOf = (directory: string, { environment, host, task }: Told): string =>
	`${directory}/comfyume_${environment}_${host}_${task}.prom`

/**
 * Puts the run's figures in place of those of the run before. What this run knows nothing of stays: when it last went
 * well, and how much of what was right when it last had something to do.
 * @returns how the run before ended, as its file says; undefined where there is none
 * @throws {OperatorError} when the directory isn't there, is full, or can't be written
 */
export async function writeTextfile(
	host: LocalHost,
	directory: string,
	told: Told,
): Promise<number | undefined> {
	const file = textfileOf(directory, told)
	const former = (await host.read(file))?.toString() ?? ""
	await host.write(file, renderTextfile(told, former), { mode: 0o644 })
	const code = Number(/^comfyume_exit_code\{.*\} (\d+)$/m.exec(former)?.[1])
	return Number.isInteger(code) ? code : undefined
}

/** In the exposition format. Pure. */
export function renderTextfile(told: Told, former: string): string {
	const { environment, host, task, exitCode, startedAt, endedAt, storedBytes, rows } = told
	const labels = { environment, host, task }
	const seconds = (at: Date) => Math.round(at.getTime() / 1000)
	const samples: Sample[] = [
		{ name: "comfyume_last_run_timestamp_seconds", labels, value: seconds(endedAt) },
		{ name: "comfyume_exit_code", labels, value: exitCode },
		{
			name: "comfyume_duration_seconds",
			labels,
			value: Math.max(0, endedAt.getTime() - startedAt.getTime()) / 1000,
		},
		{ name: "comfyume_stored_bytes", labels, value: storedBytes },
	]
	if (exitCode === 0)
		samples.push({ name: "comfyume_last_success_timestamp_seconds", labels, value: seconds(endedAt) })
	if (rows.length > 0)
		samples.push({
			name: "comfyume_verified_ratio",
			labels,
			value: rows.filter(({ ok }) => ok).length / rows.length,
		})
	for (const { artifact, source, ageSeconds } of task === "status" ? rows : []) {
		if (ageSeconds === undefined) continue
		const of = { ...labels, artifact, destination: source }
		samples.push(
			{ name: "comfyume_newest_snapshot_age_seconds", labels: of, value: ageSeconds },
			{
				name: "comfyume_newest_snapshot_timestamp_seconds",
				labels: of,
				value: seconds(endedAt) - ageSeconds,
			},
		)
	}
	const known = new Set<string>(samples.map(({ name }) => name))
	const kept = former.split("\n").filter((line) => {
		const [, name = ""] = /^(comfyume_\w+)\{.*\} \S+$/.exec(line) ?? []
		return name in help && !known.has(name)
	})
	return (Object.keys(help) as Name[])
		.flatMap((name) => {
			const lines = [
				...samples.filter((sample) => sample.name === name).map(lineOf),
				...kept.filter((line) => line.startsWith(`${name}{`)),
			]
			return lines.length === 0 ? [] : [`# HELP ${name} ${help[name]}`, `# TYPE ${name} gauge`, ...lines]
		})
		.map((line) => `${line}\n`)
		.join("")
}

function lineOf({ name, labels, value }: Sample): string {
	const escaped = (text: string) =>
		text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n")
	const inside = Object.entries(labels).map(([label, text]) => `${label}="${escaped(text)}"`)
	return `${name}{${inside.join(",")}} ${value}`
}
