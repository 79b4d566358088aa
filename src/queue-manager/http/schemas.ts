// The shapes of requests and answers: what validates is what the API document shows.
import { z } from "zod"
import { endpointNames } from "../environment.ts"
import { modes, statuses } from "../job.ts"
import { priority, userId } from "./body.ts"

export const job = z.object({
	id: z.string(),
	user_id: z.string(),
	status: z.enum(statuses),
	priority: z.number().int().min(0).max(3).describe("0 instructor, 1 high, 2 normal, 3 low"),
	created_at: z.string(),
	started_at: z.string().nullable(),
	completed_at: z.string().nullable(),
	worker_id: z.string().nullable(),
	result: z.unknown().describe("in lists only where it is small"),
	error: z.string().nullable(),
	position_in_queue: z.number().int().nullable().describe("from 0; null unless pending"),
	estimated_wait_time: z.number().nullable().describe("seconds; null while unknown"),
})

export const submit = z.object({
	user_id: userId,
	workflow: z.record(z.string(), z.unknown()).describe("not empty; 10 MiB at most"),
	priority: priority.optional(),
	metadata: z.record(z.string(), z.unknown()).optional().describe("1 MiB at most"),
})

export const jobParams = z.object({ id: z.string().min(1).max(200) })
export const jobQuery = z.object({ job_id: z.string().min(1).max(200) })
export const failQuery = jobQuery.extend({ error: z.string().optional() })
export const listQuery = z.object({
	user_id: userId.optional(),
	status: z.enum(statuses).optional(),
	// Bounded: who asks for more gets as much as there is in one answer.
	limit: z.coerce
		.number()
		.int()
		.min(1)
		.default(100)
		.transform((limit) => Math.min(limit, 1000)),
})
export const priorityQuery = z.object({ priority: priority.optional() })
export const priorityBody = z.union([priority, z.object({ priority })])

export const workerId = z.string().regex(/^[a-zA-Z0-9_.:@-]{1,100}$/)
export const claimQuery = z.object({
	worker_id: workerId,
	heartbeat: z.enum(["true", "false", "1", "0"]).default("false").describe("true: it sends heartbeats"),
})
export const failBody = z.object({
	error: z.string().trim().min(1).max(10_000),
	retryable: z.boolean().optional().describe("another attempt may help"),
})
export const heartbeatBody = z.object({
	worker_id: workerId,
	job_id: z.string().max(200).optional(),
	progress: z
		.object({
			phase: z.string().max(50),
			value: z.number().optional(),
			max: z.number().optional(),
			node: z.string().max(200).optional(),
			message: z.string().max(1000).optional(),
		})
		.optional(),
	about: z
		.record(z.string().max(50), z.union([z.string().max(500), z.number(), z.boolean(), z.null()]))
		.optional()
		.describe("what it says of itself: GPU, free memory, version"),
})

export const timeoutBody = z.object({ max_wait: z.number().int().describe("seconds, clamped to 60–1800") })
export const modeBody = z.object({ mode: z.enum(modes) })
export const pausedBody = z.object({ paused: z.boolean() })
export const shareBody = z.object({
	user_id: z.union([userId, z.literal("*")]),
	value: z.number().positive().max(1000).nullable().describe("null takes it away"),
})
export const endpointBody = z.object({ endpoint: z.enum(endpointNames) })
export const bannerBody = z.object({
	text: z.string().max(1000),
	level: z.enum(["info", "warning", "error"]).default("info"),
})
export const clientLogBody = z.object({
	level: z.enum(["debug", "info", "warn", "error"]).default("info"),
	message: z.string().min(1).max(4000),
	context: z
		.record(z.string().max(50), z.union([z.string().max(1000), z.number(), z.boolean(), z.null()]))
		// Hundreds of reports are kept.
		.refine((context) => Object.keys(context).length <= 10, "no more than ten facts")
		.optional(),
})

export const eventsQuery = z.object({
	after: z
		.string()
		.regex(/^(\d{1,16}(-\d{1,16})?)?$/)
		.optional(),
	user_id: userId.optional(),
})
