// The queue manager over HTTP. It has the same address as the page; nginx says who is asking.

/** An answer other than the one that was asked for. `status` is 0 when there was none at all. */
export class Refused extends Error {
	constructor(status, detail, body) {
		super(detail)
		this.status = status
		this.body = body
	}
}

const timeoutMs = 30_000
// While the queue manager is restarted: long enough for that, short enough for somebody who waits.
const retryForMs = 60_000
const retryable = new Set([0, 502, 503, 504])

async function ask(method, path, body, headers = {}) {
	let answer
	try {
		answer = await fetch(`/api${path}`, {
			method,
			cache: "no-store",
			headers: { ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
			...(body === undefined ? {} : { body: JSON.stringify(body) }),
			signal: AbortSignal.timeout(timeoutMs),
		})
	} catch {
		throw new Refused(0, "The queue doesn't answer")
	}
	const text = await answer.text()
	const json = parsed(text)
	if (answer.ok) return json
	throw Object.assign(new Refused(answer.status, detailOf(json) ?? `HTTP ${answer.status}`, json), {
		retryAfterMs: Number(answer.headers.get("retry-after") ?? 0) * 1000,
	})
}

function parsed(text) {
	try {
		return JSON.parse(text)
	} catch {
		return undefined
	}
}

// `{detail: "…"}` or `{detail: [{loc, msg}]}`.
function detailOf(body) {
	const detail = body?.detail
	if (typeof detail === "string") return detail
	if (Array.isArray(detail)) return detail.map(({ msg }) => msg).join("; ")
	return undefined
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

/**
 * Submits a job; the same key makes it one job, however often it has to be sent.
 * @param onWait told each time that it is tried again
 * @throws {Refused}
 */
export async function submitJob(job, key, onWait) {
	const giveUpAt = Date.now() + retryForMs
	for (let waitMs = 500; ; waitMs = Math.min(waitMs * 2, 5000)) {
		try {
			return await ask("POST", "/jobs", job, { "idempotency-key": key })
		} catch (error) {
			if (!retryable.has(error.status) || Date.now() > giveUpAt) throw error
			onWait(error)
			await pause(Math.min(Math.max(waitMs, error.retryAfterMs ?? 0), 5000))
		}
	}
}

/** A job with its result. */
export const findJob = (id) => ask("GET", `/jobs/${encodeURIComponent(id)}`)

/** A user's jobs, the newest first; results only where they are small. */
export const listJobs = (user, limit = 200, status) =>
	ask("GET", `/jobs?user_id=${user}&limit=${limit}${status === undefined ? "" : `&status=${status}`}`)

/** Cancels a job; one that has ended, or is gone, is no error. */
export async function cancelJob(id) {
	try {
		await ask("DELETE", `/jobs/${encodeURIComponent(id)}`)
	} catch (error) {
		if (error.status !== 400 && error.status !== 404) throw error
	}
}

/** What the instructor has to say: `{text, level}`. */
export const readBanner = () => ask("GET", "/banner")

/** Reports something to the operators. */
export const report = (entry) => ask("POST", "/client-log", entry)
