// What the status strip says of some jobs: from their state to a few words. Knows nothing of the page.

/** A duration in words, rounded as people say it. @param seconds 0 or more */
export function inWords(seconds) {
	if (seconds < 45) return "less than a minute"
	const minutes = Math.round(seconds / 60)
	if (minutes <= 1) return "about a minute"
	if (minutes < 90) return `about ${minutes} minutes`
	return `about ${Math.round(minutes / 60)} hours`
}

/** 1st, 2nd, 3rd, 4th … 11th. */
export function ordinal(number) {
	const ten = Math.floor((number % 100) / 10)
	const ending = ten === 1 ? "th" : (["th", "st", "nd", "rd"][number % 10] ?? "th")
	return `${number}${ending}`
}

/** What a job is doing: queued, starting, running, saving, done, failed, cancelled. */
export function phaseOf({ status, progress, isSaving }) {
	if (status === "pending") return "queued"
	if (status === "completed") return "done"
	if (status !== "running") return status
	if (isSaving === true || progress?.phase === "complete") return "saving"
	if (progress === undefined || progress.phase === "submitting") return "starting"
	return "running"
}

const isCold = ({ progress }) => progress?.message?.startsWith("cold start") === true

// The first that fits. What went wrong is told in ComfyUI's or the queue's own words; this says what to do about it.
const advice = [
	[/out of memory|CUDA error|allocat/i, "Try a smaller size, fewer frames or a smaller batch."],
	[
		/refused the workflow|invalid prompt|validat|not in list|required input/i,
		"Look for nodes with a red frame, put them right and queue again.",
	],
	[
		/undelivered|share|not done within|no file came|could not be read/i,
		"The picture may exist and not be here yet. Tell your instructor.",
	],
	[
		/worker|lost|never executed|did not take|answered? \d{3}|restarted/i,
		"It wasn't your workflow. Queue it again; if it happens twice, tell your instructor.",
	],
]
const otherAdvice = "Queue it again; if it happens twice, show this to your instructor."

/** What somebody can do about an error. */
export const adviceFor = (error) => advice.find(([pattern]) => pattern.test(error))?.[1] ?? otherAdvice

const shortened = (text) => {
	const [line = ""] = text.split("\n")
	return line.length > 180 ? `${line.slice(0, 179)}…` : line
}

const ended = (sentence) => (/[.!?…]$/.test(sentence) ? sentence : `${sentence}.`)

const percent = ({ progress }) =>
	progress?.max > 0 ? Math.min(1, Math.max(0, progress.value / progress.max)) : undefined

/**
 * What to say.
 * @param jobs of the present round, oldest first
 * @param titleOf the name of a node of the graph, by its id
 * @returns `{phase, title, detail, share, isOver}`; share is 0 to 1, or undefined; undefined when there is nothing to say
 */
export function describe(jobs, titleOf = () => undefined) {
	if (jobs.length === 0) return undefined
	return jobs.length === 1 ? describeOne(jobs[0], titleOf) : describeMany(jobs, titleOf)
}

function describeOne(job, titleOf) {
	const phase = phaseOf(job)
	const say = (title, detail = "", more = {}) => ({
		phase,
		title,
		detail,
		share: undefined,
		isOver: false,
		...more,
	})
	switch (phase) {
		case "queued":
			return say(place(job.position_in_queue), wait(job.estimated_wait_time))
		case "starting":
			return isCold(job)
				? say("A GPU is starting", "The first job after a pause takes a few minutes.")
				: say("Starting", "A GPU has your job.")
		case "running":
			return say("Running", at(job, titleOf), { share: percent(job) })
		case "saving":
			return say("Saving", "Your result is on its way here.")
		case "done":
			return say("Done", took(job), { isOver: true })
		case "cancelled":
			return say("Cancelled", "", { isOver: true })
		default: {
			const error = job.error ?? "no reason was given"
			return say(`Failed: ${shortened(error)}`, adviceFor(error), { isOver: true })
		}
	}
}

const place = (position) =>
	position === null || position === undefined
		? "Queued"
		: position === 0
			? "Queued, next in line"
			: `Queued, ${ordinal(position + 1)} in line`

const wait = (seconds) => (seconds === null || seconds === undefined ? "" : `Starts in ${inWords(seconds)}.`)

function at(job, titleOf) {
	const { node } = job.progress ?? {}
	const name = node === undefined ? undefined : (titleOf(node) ?? `node ${node}`)
	const share = percent(job)
	return [name, share === undefined ? undefined : `${Math.round(share * 100)} %`].filter(Boolean).join(", ")
}

function took({ started_at, completed_at }) {
	const seconds = Math.round((Date.parse(completed_at) - Date.parse(started_at)) / 1000)
	return Number.isNaN(seconds)
		? ""
		: seconds < 90
			? `It took ${seconds} s.`
			: `It took ${Math.round(seconds / 60)} min.`
}

function describeMany(jobs, titleOf) {
	const by = (...phases) => jobs.filter((job) => phases.includes(phaseOf(job)))
	const done = by("done")
	const waiting = by("queued")
	const atWork = by("starting", "running", "saving")
	const failed = by("failed")
	const cancelled = by("cancelled")
	const parts = [`${done.length} of ${jobs.length} done`]
	if (atWork.length > 0)
		parts.push(`${atWork.length} ${atWork.every(isCold) ? "waiting for a GPU" : "running"}`)
	if (waiting.length > 0) parts.push(waitingPart(waiting))
	if (failed.length > 0) parts.push(`${failed.length} failed`)
	if (cancelled.length > 0) parts.push(`${cancelled.length} cancelled`)
	const isOver = waiting.length + atWork.length === 0
	const [first] = atWork
	const worst = failed.at(-1)
	const detail =
		worst !== undefined
			? `${ended(shortened(worst.error ?? "No reason was given"))} ${adviceFor(worst.error ?? "")}`
			: first !== undefined
				? describeOne(first, titleOf).detail
				: wait(waiting[0]?.estimated_wait_time)
	const ahead = done.length + failed.length + cancelled.length
	const shares = atWork.reduce((sum, job) => sum + (percent(job) ?? 0), 0)
	return {
		phase:
			failed.length > 0
				? "failed"
				: isOver
					? done.length > 0
						? "done"
						: "cancelled"
					: first
						? phaseOf(first)
						: "queued",
		title: parts.join(", "),
		detail,
		share: (ahead + shares) / jobs.length,
		isOver,
	}
}

function waitingPart(waiting) {
	const places = waiting
		.map((job) => job.position_in_queue)
		.filter((place) => place !== null && place !== undefined)
	if (places.length === 0) return `${waiting.length} waiting`
	const first = Math.min(...places)
	if (first === 0) return `${waiting.length} waiting, next in line`
	return waiting.length === 1
		? `1 waiting as ${ordinal(first + 1)}`
		: `${waiting.length} waiting, the first as ${ordinal(first + 1)}`
}
