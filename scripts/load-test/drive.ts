// Users and workers over HTTP, as many as wanted, against one queue manager.
import { setTimeout as pause } from "node:timers/promises"
import type { JobTimes } from "./report.ts"

export type Drive = {
	url: string
	/** A bearer token for users and workers; undefined where everybody is let in. */
	token: string | undefined
	users: number
	jobs: number
	workers: number
	/** Share of jobs that are videos, 0 to 1. */
	videoShare: number
	/** How much faster than real: 100 makes an image of 20 s take 200 ms. */
	speed: number
	/** No job may stay so long. */
	deadlineMs: number
	random: () => number
}

export type Driven = { jobs: JobTimes[]; submitMs: number[]; errors: number; seconds: number }

// Seconds on a warm GPU; log-normal, as run times are: many near the middle, some far above.
const kinds = { image: { medianS: 20, spread: 0.4 }, video: { medianS: 180, spread: 0.5 } } as const

const nodes = {
	image: { "3": { class_type: "KSampler", inputs: {} }, "9": { class_type: "SaveImage", inputs: {} } },
	video: { "3": { class_type: "SamplerCustom", inputs: {} }, "9": { class_type: "SaveVideo", inputs: {} } },
}

/** How long a job of a kind takes, in real seconds. */
export function durationOf(kind: keyof typeof kinds, random: () => number): number {
	const { medianS, spread } = kinds[kind]
	const normal = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random())
	return medianS * Math.exp(spread * normal)
}

/** Submits all jobs, has them worked off, and asks for what became of each. @throws when the deadline passes */
export async function drive(options: Drive): Promise<Driven> {
	const { url, token, users, workers, random } = options
	const startedAt = performance.now()
	const now = () => performance.now() - startedAt
	const jobs = new Map<string, JobTimes>()
	const submitMs: number[] = []
	let errors = 0
	let submitting = users

	async function call(method: string, path: string, body?: unknown, headers: Record<string, string> = {}) {
		const answer = await fetch(`${url}${path}`, {
			method,
			signal: AbortSignal.timeout(30_000),
			headers: {
				...headers,
				...(body === undefined ? {} : { "content-type": "application/json" }),
				...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
			},
			...(body === undefined ? {} : { body: JSON.stringify(body) }),
		})
		const text = await answer.text()
		return { ok: answer.ok, status: answer.status, headers: answer.headers, text }
	}

	async function user(index: number): Promise<void> {
		const name = `user${String(index + 1).padStart(3, "0")}`
		const share = Math.floor(options.jobs / users) + (index < options.jobs % users ? 1 : 0)
		for (let count = 0; count < share; ) {
			const kind = random() < options.videoShare ? "video" : "image"
			const workS = durationOf(kind, random)
			const begun = performance.now()
			const body = { user_id: name, workflow: nodes[kind], metadata: { load_test_s: workS } }
			// The same key each time: a repeated submit is the same job.
			const key = { "idempotency-key": `load-${startedAt}-${index}-${count}` }
			const answer = await call("POST", "/api/jobs", body, key).catch(() => undefined)
			if (answer?.ok !== true) {
				// Full, or limited: that is an answer. Anything else is an error.
				if (answer?.status !== 429) errors++
				if (now() > options.deadlineMs) break
				await pause(100)
				continue
			}
			submitMs.push(performance.now() - begun)
			const { id } = JSON.parse(answer.text) as { id: string }
			const submittedMs = begun - startedAt
			// A worker may have had it before its submit was answered.
			const times = jobs.get(id) ?? placeholder()
			jobs.set(id, Object.assign(times, { user: name, kind, submittedMs }))
			count++
		}
		submitting--
	}

	async function worker(index: number): Promise<void> {
		const name = `load-worker-${index + 1}`
		const isDone = () =>
			now() > options.deadlineMs ||
			(submitting === 0 && [...jobs.values()].every(({ endedMs }) => endedMs !== undefined))
		while (!isDone()) {
			const claim = await call("GET", `/api/workers/next-job?worker_id=${name}&heartbeat=true`).catch(
				() => undefined,
			)
			if (claim?.ok !== true) {
				errors++
				await pause(100)
				continue
			}
			const { job } = JSON.parse(claim.text) as {
				job: { id: string; metadata: { load_test_s?: number } } | null
			}
			if (job === null) {
				await pause(20)
				continue
			}
			// A claim may be quicker than the answer to its submit.
			const times = jobs.get(job.id) ?? placeholder()
			jobs.set(job.id, times)
			times.claimedMs = now()
			times.claims++
			await pause(((job.metadata.load_test_s ?? 0) * 1000) / options.speed)
			await complete(job.id, claim.headers)
		}
	}

	async function complete(id: string, claimed: Headers): Promise<void> {
		const lease = claimed.get("x-comfyume-lease")
		const headers: Record<string, string> = lease === null ? {} : { "x-comfyume-lease": lease }
		const result = { prompt_id: id, status: "success", outputs: {} }
		while (now() <= options.deadlineMs) {
			const answer = await call("POST", `/api/workers/complete-job?job_id=${id}`, { result }, headers).catch(
				() => undefined,
			)
			const times = jobs.get(id)
			if (answer?.ok === true && times !== undefined) {
				times.endings++
				times.endedMs = now()
				return
			}
			errors++
			if (answer !== undefined && answer.status < 500) return
			await pause(100)
		}
	}

	await Promise.all([
		...Array.from({ length: users }, (_, index) => user(index)),
		...Array.from({ length: workers }, (_, index) => worker(index)),
	])
	const seconds = now() / 1000
	// Whatever is handed out now has been handed out before.
	for (let turn = 0; turn < options.jobs; turn++) {
		const claim = await call("GET", "/api/workers/next-job?worker_id=load-sweeper&heartbeat=true")
		const { job } = JSON.parse(claim.text) as { job?: { id: string } | null }
		if (job == null) break
		const times = jobs.get(job.id)
		if (times !== undefined) times.claims++
		await complete(job.id, claim.headers)
	}
	// The last word is the queue manager's.
	for (const [id, times] of jobs) {
		const answer = await call("GET", `/api/jobs/${id}`).catch(() => undefined)
		if (answer?.ok === true) times.finalStatus = (JSON.parse(answer.text) as { status: string }).status
	}
	return { jobs: [...jobs.values()].filter(({ user: name }) => name !== ""), submitMs, errors, seconds }
}

const placeholder = (): JobTimes => ({
	user: "",
	kind: "image",
	submittedMs: 0,
	claimedMs: undefined,
	endedMs: undefined,
	claims: 0,
	endings: 0,
	finalStatus: "unknown",
})
