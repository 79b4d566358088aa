// A job as the API shows it, and what the engine's records say.

export const statuses = ["pending", "running", "completed", "failed", "cancelled"] as const
export type Status = (typeof statuses)[number]

export const modes = ["fifo", "round_robin", "priority"] as const
export type Mode = (typeof modes)[number]

/** 0 instructor, 1 high, 2 normal, 3 low. */
export type Priority = 0 | 1 | 2 | 3

/** One job, without its workflow. Times are ms since 1970. */
export type JobRecord = {
	id: string
	user: string
	status: Status
	priority: Priority
	kind: string
	createdMs: number
	startedMs: number | null
	completedMs: number | null
	worker: string | null
	error: string | null
	/** How often it was started. */
	attempt: number
	/** Why it is a dead letter, if it is one. */
	dead: string | null
	/** Raised by every change. */
	revision: number
}

/** The job as every answer and event carries it: these keys, always all of them. */
export type Job = {
	id: string
	user_id: string
	status: Status
	priority: Priority
	created_at: string
	started_at: string | null
	completed_at: string | null
	worker_id: string | null
	result: unknown
	error: string | null
	position_in_queue: number | null
	estimated_wait_time: number | null
}

/** What a record doesn't hold: computed when it is asked for. */
export type Outlook = { position: number | null; waitSeconds: number | null; result?: unknown }

/** The record as clients see it. */
export function toJob(record: JobRecord, { position, waitSeconds, result = null }: Outlook): Job {
	return {
		id: record.id,
		user_id: record.user,
		status: record.status,
		priority: record.priority,
		created_at: iso(record.createdMs) ?? "",
		started_at: iso(record.startedMs),
		completed_at: iso(record.completedMs),
		worker_id: record.worker,
		result,
		error: record.error,
		position_in_queue: record.status === "pending" ? position : null,
		estimated_wait_time: record.status === "pending" ? waitSeconds : null,
	}
}

/** Reads the fields of a record or an event as Redis gives them. */
export function recordOf(id: string, fields: ReadonlyMap<string, string>): JobRecord {
	const number = (name: string) => {
		const value = fields.get(name)
		return value === undefined ? null : Number(value)
	}
	return {
		id,
		user: fields.get("user") ?? "",
		status: (fields.get("status") ?? "pending") as Status,
		priority: Number(fields.get("priority") ?? 2) as Priority,
		kind: fields.get("kind") ?? "",
		createdMs: number("created") ?? 0,
		startedMs: number("started"),
		completedMs: number("completed"),
		worker: fields.get("worker") ?? null,
		error: fields.get("error") ?? null,
		attempt: number("attempt") ?? 0,
		dead: fields.get("dead") ?? null,
		revision: number("revision") ?? 0,
	}
}

const iso = (ms: number | null) => (ms === null ? null : new Date(ms).toISOString())
