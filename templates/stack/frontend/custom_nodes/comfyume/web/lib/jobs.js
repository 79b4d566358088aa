// What this page knows of its user's jobs: from events, and from the list where events are not enough.
import { followEvents } from "./events.js"
import { findJob, listJobs, readBanner } from "./queue-manager.js"
import { settings } from "./settings.js"

// Positions of those who wait change by what others do, and nobody is told of others' jobs.
const lookAgainMs = 5000
const withoutEventsMs = 2000
const soonMs = 400
const mostShown = 200
const mostKnown = 1000
const ended = new Set(["completed", "failed", "cancelled"])

export const hasEnded = ({ status }) => ended.has(status)

/** All jobs that are known, by id: the queue manager's, with `progress`, `batch`, `isSaving` and `isOurs` added. */
const jobs = new Map()
const listeners = new Set()
/** Jobs since everything was last at rest: what the strip sums up. */
let round = []
let isLinked = true
let lookAt = 0
let banner = { text: "", level: "info" }
let notice

// Jobs of this tab: a reload goes on showing them, another tab shows its own.
const rememberedKey = "comfyume.jobs"
const ours = new Map(read(rememberedKey, []))

function read(key, otherwise) {
	try {
		return JSON.parse(sessionStorage.getItem(key) ?? "null") ?? otherwise
	} catch {
		return otherwise
	}
}

function remember() {
	try {
		sessionStorage.setItem(rememberedKey, JSON.stringify([...ours].slice(-200)))
	} catch {
		// Storage is full or forbidden: only a reload would have used it.
	}
}

/** Tells of every change: `(job, before, event)`, or without a job when something else has changed. */
export function onChange(listener) {
	listeners.add(listener)
	return () => listeners.delete(listener)
}

function tell(job, before, event) {
	for (const listener of listeners) {
		try {
			listener(job, before, event)
		} catch (error) {
			console.warn("comfyume: a listener failed", error)
		}
	}
}

export const known = (id) => jobs.get(id)
export const active = () => [...jobs.values()].filter((job) => !hasEnded(job))
export const state = () => ({
	round: round.map((id) => jobs.get(id)).filter((job) => job !== undefined),
	isLinked,
	banner,
	notice,
})

/** A job that this page has just submitted. @param batch `{index, total}` */
export function addOurs(job, batch) {
	ours.set(job.id, { ...batch, isOpen: true })
	remember()
	notice = undefined
	merge(job)
}

/** Something to say that is no job's: `{tone, title, detail}`, or undefined when it is over. */
export function say(what) {
	notice = what
	tell()
}

/** What has ended is shown no more. */
export function forgetEnded() {
	round = round.filter((id) => !hasEnded(jobs.get(id) ?? { status: "completed" }))
	notice = undefined
	tell()
}

function merge(job, event) {
	const before = jobs.get(job.id)
	// The list may be older than the events. What has ended stays so, unless an event says that it is tried again.
	if (before !== undefined && hasEnded(before) && event === undefined) return
	const isOlder = event === undefined && isLinked && before?.status === "running" && job.status === "pending"
	if (isOlder) return
	const own = ours.get(job.id)
	const after = { ...before, ...job, isOurs: own !== undefined, batch: own }
	if (job.status === "pending") Object.assign(after, { progress: undefined, isSaving: false })
	const isOpen = own?.isOpen === true
	if (own !== undefined && hasEnded(after)) {
		own.isOpen = false
		remember()
	}
	if (before === undefined && hasEnded(after) && !isOpen) {
		jobs.set(job.id, after)
		return
	}
	if (!round.includes(job.id)) {
		if (active().length === 0) round = []
		round.push(job.id)
	}
	jobs.set(job.id, after)
	prune()
	tell(after, before, event)
}

// A page is open for days: of what has ended, the newest are enough.
function prune() {
	const isOld = (id) => hasEnded(jobs.get(id) ?? { status: "completed" })
	while (round.length > mostShown && isOld(round[0])) round.shift()
	for (const id of jobs.keys()) {
		if (jobs.size <= mostKnown) break
		if (isOld(id) && !round.includes(id)) jobs.delete(id)
	}
}

function take(event) {
	const { type, data } = event
	if (type === "banner") {
		banner = data
		tell()
		return
	}
	if (type.startsWith("job_")) {
		merge(data, event)
		// The places of those behind it have changed too.
		lookAt = Math.min(lookAt, Date.now() + soonMs)
		return
	}
	const job = jobs.get(data?.prompt_id)
	if (job === undefined || hasEnded(job)) return
	const changes = { comfyume_progress: { progress: data }, output_delivered: { isSaving: true } }[type]
	if (changes === undefined) return
	jobs.set(job.id, { ...job, ...changes })
	tell(jobs.get(job.id), job, event)
}

/** Reads the list of the user's jobs anew. */
export async function refresh() {
	const { userId } = await settings()
	const [waiting, running] = await Promise.all([
		listJobs(userId, 200, "pending"),
		listJobs(userId, 200, "running"),
	])
	const listed = new Map([...waiting, ...running].map((job) => [job.id, job]))
	for (const job of listed.values()) merge(job)
	// Those that were active and are no more have ended meanwhile.
	if (active().some(({ id }) => !listed.has(id))) {
		for (const job of await listJobs(userId)) if (jobs.has(job.id) && hasEnded(job)) merge(job)
	}
}

async function refreshBanner() {
	banner = await readBanner()
	tell()
}

let started

/** Begins to follow; the first one who needs it starts it. */
export function start() {
	started ??= begin()
	return started
}

async function begin() {
	const attempt = (work) => work().catch(() => undefined)
	const { userId } = await settings()
	followEvents(userId, undefined, {
		event: take,
		resync: () => void attempt(refresh),
		link(isUp) {
			const was = isLinked
			isLinked = isUp
			// The banner has no place in the stream of what was missed for long.
			if (isUp) for (const work of [refresh, refreshBanner]) void attempt(work)
			if (was !== isUp) tell()
		},
	})
	setInterval(() => {
		if (active().length === 0 || Date.now() < lookAt) return
		lookAt = Date.now() + (isLinked ? lookAgainMs : withoutEventsMs)
		void attempt(refresh)
	}, 200)
	await attempt(refresh)
	// What this tab waited for when it was reloaded, and has ended meanwhile.
	for (const [id, { isOpen }] of ours) {
		if (isOpen && !jobs.has(id)) await attempt(async () => merge(await findJob(id)))
	}
}
