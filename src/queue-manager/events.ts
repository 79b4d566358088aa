// What happens to jobs, for those who wait for it: browsers over WebSocket, held requests, metrics.
import { type Job, type JobRecord, recordOf, toJob } from "./job.ts"
import type { EventPage, QueueEvent } from "./queue/events.ts"
import type { Queue } from "./queue/queue.ts"

/** An event as text for a client, and whose it is. */
export type Message = { id: string; user: string; text: string }

export type EventHub = {
	/** From when on nothing that happens is missed: the stream's end is known. Waits for Redis. */
	started: Promise<void>
	/** The id of the last event that listeners were told of. */
	lastId(): string
	/** Tells of every event from now on, in order. @returns what ends it */
	listen(listener: (messages: readonly Message[]) => void): () => void
	/** How many listen. */
	clients(): number
	/** Tells of every record's change, before positions are known. @returns what ends it */
	onChange(listener: (record: JobRecord) => void): () => void
	/** Events after one, oldest first, as far as they are kept. */
	after(id: string, most: number): Promise<Message[]>
	close(): Promise<void>
}

/** Follows the queue's events. @param waitOf seconds that a job of a kind waits at a position, or null */
export function openEventHub(
	queue: Queue,
	waitOf: (kind: string, position: number) => Promise<number | null>,
): EventHub {
	const listeners = new Set<(messages: readonly Message[]) => void>()
	const watchers = new Set<(record: JobRecord) => void>()
	let last = "0-0"
	let told: Promise<void> = Promise.resolve()

	const following = queue.follow((events) => {
		for (const { id, fields } of events) {
			if (!(fields.get("type") ?? "").startsWith("job_")) continue
			const record = recordOf(fields.get("id") ?? id, fields)
			for (const watch of watchers) watch(record)
		}
		// One page after the other: finding positions takes a moment, and the order must stay.
		told = told.then(() => tell(events)).catch(() => undefined)
	})

	async function tell(events: EventPage): Promise<void> {
		const messages = listeners.size === 0 ? [] : await messagesOf(events)
		last = events.at(-1)?.id ?? last
		for (const listener of listeners) listener(messages)
	}

	async function messagesOf(events: EventPage): Promise<Message[]> {
		const waiting = new Set(
			events.flatMap(({ fields }) => (fields.get("status") === "pending" ? [fields.get("id") ?? ""] : [])),
		)
		// Positions are those of now; a job that waits no more has none.
		const found = waiting.size === 0 ? [] : await queue.findMany([...waiting]).catch(() => [])
		const positions = new Map(found.map(({ record, position }) => [record.id, position]))
		return Promise.all(events.map((event) => messageOf(event, positions)))
	}

	async function messageOf(
		{ id, fields }: QueueEvent,
		positions: ReadonlyMap<string, number | null>,
	): Promise<Message> {
		const job = fields.get("id") ?? ""
		const type = fields.get("type") ?? "job_updated"
		const timestamp = new Date(Number(fields.get("at") ?? 0)).toISOString()
		const user = fields.get("user") ?? ""
		const position = positions.get(job) ?? null
		const data =
			type === "comfyume_progress"
				? { prompt_id: job, ...(JSON.parse(fields.get("progress") ?? "{}") as object) }
				: type === "output_delivered"
					? outputOf(job, fields)
					: type === "banner"
						? (JSON.parse(fields.get("data") ?? "{}") as object)
						: await jobOf(recordOf(job, fields), position)
		return { id, user, text: JSON.stringify({ type, data, timestamp, id }) }
	}

	const outputOf = (job: string, fields: ReadonlyMap<string, string>) => ({
		prompt_id: job,
		node: fields.get("node") ?? "",
		file: { filename: fields.get("filename") ?? "", subfolder: fields.get("user") ?? "", type: "output" },
	})

	async function jobOf(record: JobRecord, position: number | null): Promise<Job> {
		return toJob(record, {
			position,
			waitSeconds: position === null ? null : await waitOf(record.kind, position),
		})
	}

	return {
		started: following.started,
		lastId: () => last,
		listen(listener) {
			listeners.add(listener)
			return () => listeners.delete(listener)
		},
		clients: () => listeners.size,
		onChange(listener) {
			watchers.add(listener)
			return () => watchers.delete(listener)
		},
		after: async (id, most) => messagesOf(await queue.eventsAfter(id, most)),
		async close() {
			await following.close()
			await told
		},
	}
}

/** Which of two event ids is later: below 0 when the first is earlier. */
export function compareIds(a: string, b: string): number {
	const [timeA = "0", countA = "0"] = a.split("-")
	const [timeB = "0", countB = "0"] = b.split("-")
	return Number(timeA) - Number(timeB) || Number(countA) - Number(countB)
}
