// The queue's counters of one moment, as the script gives them.
import type { Mode } from "../job.ts"
import type { Reply } from "./connection.ts"
import { mapOf } from "./reply.ts"

export type WorkerRow = {
	name: string
	seenMs: number
	/** The id of the job in its hands. */
	job: string | null
	/** JSON, as it said of itself and of its job. */
	about: string | null
	progress: string | null
}

export type QueueStatus = {
	/** Redis' clock. */
	nowMs: number
	mode: Mode
	paused: boolean
	config: ReadonlyMap<string, string>
	/** Since the workshop began: created, claims, completed, failed, cancelled, retries, lost, dead, waited_ms, ran_ms. */
	totals: ReadonlyMap<string, number>
	waiting: number
	running: readonly { kind: string; startedMs: number; worker: string }[]
	workers: readonly WorkerRow[]
	activeWorkers: number
	/** Kinds of workflow that wait or run, with how long the last ones ran. */
	kinds: ReadonlyMap<string, { waiting: number; ranMs: readonly number[] }>
	oldestMs: number | null
	deadLetters: number
}

/** Reads the reply of the status script. */
export function readStatus(reply: Reply): QueueStatus {
	const [now, config, totals, waiting, running, workers, kinds, oldest, deadLetters, active] = reply as [
		string,
		string[],
		string[],
		number,
		[string, string, string][],
		[string, string, string[]][],
		[string, number, string[]][],
		string | null,
		number,
		number,
	]
	const settings = mapOf(config)
	return {
		nowMs: Number(now),
		mode: (settings.get("mode") ?? "fifo") as Mode,
		paused: settings.get("paused") === "1",
		config: settings,
		totals: new Map([...mapOf(totals)].map(([name, value]) => [name, Number(value)])),
		waiting,
		running: running.map(([kind, started, worker]) => ({ kind, startedMs: Number(started), worker })),
		workers: workers.map(([name, seen, flat]) => {
			const fields = mapOf(flat)
			return {
				name,
				seenMs: Number(seen),
				job: fields.get("job") ?? null,
				about: fields.get("about") ?? null,
				progress: fields.get("progress") ?? null,
			}
		}),
		activeWorkers: active,
		kinds: new Map(kinds.map(([kind, count, ran]) => [kind, { waiting: count, ranMs: ran.map(Number) }])),
		oldestMs: oldest === null ? null : Number(oldest),
		deadLetters,
	}
}
