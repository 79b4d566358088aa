// Transport 3: vanilla ComfyUI behind a load balancer, results on the shared file system. A later request may reach
// another replica, so the only witness that counts is the attempt's own directory; what a replica happens to say of the
// prompt is taken as a hint where it says something, and as nothing where it doesn't.
import { messageOf } from "../../lib/errors.ts"
import { type Delivery, type DeliveryOptions, deliverFile } from "../outputs/deliver.ts"
import { type Files, FileTrouble } from "../outputs/file-pool.ts"
import type { OutputKey } from "../outputs/kinds.ts"
import { attemptDirectory, type OutputPlan, planOutputs, promptId } from "../outputs/prefix.ts"
import { type Preflight, preflight } from "../outputs/preflight.ts"
import type { OutputFile } from "../outputs/result.ts"
import type { SettleTimes } from "../outputs/settle.ts"
import { type Clock, type Watch, type WatchEvent, watchOutputs } from "../outputs/watch.ts"
import { StartFailed, type Transport, type TransportJob } from "../transport.ts"
import {
	checkedWorkflow,
	keyOf,
	nameOf,
	parseRun,
	parseWorkflow,
	type Run,
	submissionsOf,
} from "./attempt.ts"
import type { Sighting } from "./comfyui-client.ts"
import type { Endpoint, Endpoints } from "./endpoints.ts"
import { failed, outcomeOf, refusedOf, timedOut, withoutRefusedNodes } from "./outcome.ts"
import { submit } from "./submit.ts"

export type SharedFilesystemOptions = Omit<DeliveryOptions, "files"> & {
	endpoints: Endpoints
	/** For looking. Delivery has threads of its own, so that a long copy delays no look. */
	files: Files
	deliveryFiles: Files
	clock: Clock
	/** How long a submission may take; 120 000. */
	acceptMs?: number
	/** From acceptance to the end; 590 000, so that who waits is answered before 600 s. */
	maxWaitMs?: number
	/** How long later files are waited for after a job is done; 120 000. */
	lateMs?: number
	/** Between questions to whatever replica answers, while nothing is seen; 15 000. */
	sightMs?: number
	tickMs?: number
	coldTickMs?: number
	times?: SettleTimes
	/** Each endpoint proves before its first job that it writes where we read. */
	preflight?: boolean
	say?: (
		event: (
			| WatchEvent
			| { event: "quarantined"; file: string; because: string }
			/** @param lagMs since it was last seen to change */
			| { event: "delivered"; file: string; lagMs: number }
		) & { job: string },
	) => void
}

/** A file that came after its job was done. */
export type Amendment = { node: string; key: OutputKey; file: OutputFile }

export type SharedFilesystem = Transport & {
	/**
	 * Goes on watching a job that is done, delivers what comes late, and at the end removes the attempt's directory.
	 * @param onAmendment told of every file, those that the result has already included: a process that was ended
	 *   between a delivery and its note would otherwise leave the note out for ever
	 */
	watchLate(
		job: TransportJob,
		onAmendment: (amendment: Amendment) => Promise<void>,
		signal: AbortSignal,
	): Promise<void>
	/** Whether an endpoint writes where we read. May wake a GPU. */
	preflight(endpoint: string): Promise<Preflight>
}

/** Beside the attempt's files: what a queue manager that starts anew must know to go on observing. */
export const acceptedName = ".accepted.json"

export function sharedFilesystem(options: SharedFilesystemOptions): SharedFilesystem {
	const { endpoints, files, clock, shareRoot, say = () => {} } = options
	const { acceptMs = 120_000, maxWaitMs: usualWaitMs = 590_000, lateMs = 120_000, sightMs = 15_000 } = options
	const runs = new Map<string, Run>()
	const proven = new Set<string>()

	const check = async ({ name, client }: Endpoint): Promise<Preflight> => {
		const found = await preflight({ files, shareRoot, far: client.far, clock, randomId: options.randomId })
		if (found.state === "same-volume") proven.add(name)
		return found
	}
	const watchOf = (job: TransportJob, plan: OutputPlan) =>
		watchOutputs({
			files,
			shareRoot,
			plan,
			clock,
			...(options.times && { times: options.times }),
			...(options.tickMs !== undefined && { tickMs: options.tickMs }),
			...(options.coldTickMs !== undefined && { coldTickMs: options.coldTickMs }),
			say: (event) => say({ ...event, job: job.id }),
		})
	const deliverAll = async (
		job: TransportJob,
		plan: OutputPlan,
		watch: Watch,
		names: ReadonlySet<string>,
	) => {
		const deliveries: Delivery[] = []
		const attempt = plan.directory.slice(plan.directory.lastIndexOf("/") + 1)
		for (const file of watch.files().filter(({ name }) => names.has(name))) {
			const given = { ...options, files: options.deliveryFiles }
			const delivery = await deliverFile(given, { job: job.id, attempt, user: job.user, plan }, file)
			if (delivery.state === "quarantined")
				say({ event: "quarantined", file: file.name, because: delivery.because, job: job.id })
			if (delivery.state === "delivered" && delivery.isFirst)
				say({ event: "delivered", file: file.name, lagMs: clock.nowMs() - file.changedAtMs, job: job.id })
			deliveries.push(delivery)
		}
		return deliveries
	}
	const recall = async (job: TransportJob): Promise<Run | undefined> => {
		const known = runs.get(keyOf(job))
		if (known !== undefined) return known
		const submissions = await submissionsOf(files, shareRoot, job)
		for (const submission of submissions.toSorted((one, other) => other - one)) {
			const directory = attemptDirectory(nameOf(job, submission))
			const place = { root: shareRoot, path: `${directory}/${acceptedName}`, mostBytes: 1024 * 1024 }
			const text = await files.readText(place).catch(() => undefined)
			const run = text === undefined ? undefined : parseRun(text, submission)
			if (run !== undefined) return run
		}
		return undefined
	}

	return {
		freeSlots() {
			const { name, slots } = endpoints.active()
			const running = endpoints.states().find((state) => state.name === name)?.running ?? 0
			return Math.max(0, slots - running)
		},
		async preflight(name) {
			const endpoint = endpoints.find(name)
			if (endpoint === undefined)
				return { state: "failed", reason: "unreachable", because: `there is no endpoint ${name}`, hint: "" }
			return check(endpoint)
		},
		async start(job, onProgress = () => {}, signal) {
			const endpoint = endpoints.find(job.endpoint ?? "") ?? endpoints.active()
			const workflow = checkedWorkflow(job)
			if (!endpoints.take(endpoint.name, keyOf(job)))
				throw new StartFailed(`${endpoint.name} runs as many jobs as it may`, { reason: "unavailable" })
			try {
				onProgress({ phase: "submitting" })
				if (options.preflight === true && !proven.has(endpoint.name)) {
					const found = await check(endpoint)
					if (found.state === "failed")
						throw new StartFailed(found.because, { reason: "misconfigured", hint: found.hint })
				}
				const accepted = await submit({
					endpoint,
					clock,
					acceptMs,
					onProgress,
					...(signal && { signal }),
					async bodyOf(submission) {
						const plan = planOutputs(workflow, nameOf(job, submission))
						// It must be there before anybody looks for it: NFS remembers for a while that it isn't.
						await files.makeShared({ root: shareRoot, path: plan.directory })
						const id = promptId(nameOf(job, submission))
						return {
							prompt: plan.prompt,
							prompt_id: id,
							...(plan.extraData && { extra_data: plan.extraData }),
						}
					},
				})
				const run: Run = { ...accepted, endpoint: endpoint.name, acceptedMs: clock.nowMs() }
				runs.set(keyOf(job), run)
				const directory = attemptDirectory(nameOf(job, run.submission))
				const place = { root: shareRoot, path: `${directory}/${acceptedName}` }
				await files.write({ ...place, text: JSON.stringify(run) })
				// What an earlier submission may have started is of no use any more.
				for (let earlier = 1; earlier < run.submission; earlier++)
					void endpoint.client.stop(promptId(nameOf(job, earlier)), earlier).catch(() => {})
			} catch (error) {
				if (!runs.has(keyOf(job))) {
					endpoints.release(keyOf(job))
					if (!(error instanceof FileTrouble)) throw error
					throw new StartFailed(messageOf(error), { reason: "share", hint: `findmnt --target ${shareRoot}` })
				}
			}
		},
		async observe(job, onProgress, signal) {
			const maxWaitMs = job.maxWaitMs ?? usualWaitMs
			const run = await recall(job)
			if (run === undefined)
				return failed("nothing is known of a submission of this job", "never-executed", { retryable: true })
			const name = nameOf(job, run.submission)
			const plan = withoutRefusedNodes(planOutputs(parseWorkflow(job), name), run.nodeErrors)
			const endpoint = endpoints.find(run.endpoint)
			const client = endpoint?.client
			if (endpoint !== undefined) endpoints.take(endpoint.name, keyOf(job), { evenIfFull: true })
			const watch = watchOf(job, plan)
			const seen: { now: Sighting; best: Sighting["state"] } = { now: { state: "unseen" }, best: "unseen" }
			let doneAtMs: number | undefined
			// What is remembered on the share may be anything, a time to come included.
			const startedMs = Math.min(run.acceptedMs, clock.nowMs())
			let sightAtMs = startedMs + sightMs
			let asking = false
			let rounds = 0
			let trouble = "the share was never read"
			try {
				onProgress({ phase: "polling" })
				for (;;) {
					await watch.look()
					const settled = watch.settled()
					trouble = settled.state === "waiting" ? settled.because : trouble
					if (settled.state === "done") {
						const names = new Set(settled.files.map((file) => file.name))
						const deliveries = await deliverAll(job, plan, watch, names).catch((error: unknown) => {
							signal.throwIfAborted()
							trouble = `delivery: ${messageOf(error)}`
							return undefined
						})
						if (deliveries !== undefined) {
							onProgress({ phase: "complete" })
							return outcomeOf(job, run, plan, deliveries, [...settled.given, ...refusedOf(watch)])
						}
					}
					const { now } = seen
					if (now.state === "failed")
						return failed(`ComfyUI failed: ${now.error}`, "execution-error", { details: now.details })
					if (now.state === "interrupted")
						return failed("it was interrupted on the GPU's side", "execution-error")
					const nowMs = clock.nowMs()
					if (now.state === "succeeded") doneAtMs ??= nowMs
					if (doneAtMs !== undefined && !watch.hasBegun() && nowMs - doneAtMs > noFilesMs)
						return failed(
							`ComfyUI says that it ran, and no file came to ${plan.directory}: the GPU writes to another volume, or without --output-directory`,
							"no-files",
						)
					if (nowMs - startedMs >= maxWaitMs) return timedOut(watch, seen.best, trouble, maxWaitMs)
					if (client !== undefined && !asking && nowMs >= sightAtMs && !isOver(now)) {
						asking = true
						sightAtMs = nowMs + sightMs
						void client
							.sight(promptId(name), rounds++, signal)
							.then((sighting) => {
								seen.now = sighting
								if (sighting.state !== "unseen") seen.best = sighting.state
							})
							.catch(() => {})
							.finally(() => {
								asking = false
							})
					}
					const leftMs = startedMs + maxWaitMs - nowMs
					await clock.wait(Math.max(0, Math.min(watch.nextTickMs(), leftMs)), signal)
				}
			} finally {
				endpoints.release(keyOf(job))
				runs.delete(keyOf(job))
			}
		},
		async cancel(job) {
			const run = await recall(job)
			const submissions = await submissionsOf(files, shareRoot, job)
			const client = (run && endpoints.find(run.endpoint)?.client) ?? endpoints.active().client
			endpoints.release(keyOf(job))
			// Each round may reach another replica; nothing tells how many there are.
			for (let round = 0; round < stopRounds; round++)
				for (const submission of new Set([...submissions, run?.submission ?? 1]))
					await client.stop(promptId(nameOf(job, submission)), round).catch(() => {})
		},
		async watchLate(job, onAmendment, signal) {
			const run = await recall(job)
			if (run === undefined) return
			const plan = planOutputs(parseWorkflow(job), nameOf(job, run.submission))
			const watch = watchOf(job, plan)
			const over = new Set<string>()
			for (const untilMs = clock.nowMs() + lateMs; clock.nowMs() < untilMs; ) {
				await watch.look()
				// Each by itself: the job is done, and no node is waited for.
				for (const file of watch.files().filter(({ name }) => !over.has(name))) {
					const { state } = watch.settled(file.name)
					if (state === "waiting") continue
					const [delivery] = await deliverAll(job, plan, watch, new Set([file.name])).catch(() => [])
					if (delivery === undefined) continue
					if (delivery.state === "delivered") {
						const { node, key, filename } = delivery
						await onAmendment({ node, key, file: { filename, subfolder: job.user, type: "output" } })
					}
					over.add(file.name)
				}
				await clock.wait(Math.min(options.coldTickMs ?? 3_000, Math.max(0, untilMs - clock.nowMs())), signal)
			}
			const isClear = watch.refused().size === 0 && watch.files().every(({ name }) => over.has(name))
			if (isClear) await files.removeTree({ root: shareRoot, path: plan.directory }).catch(() => {})
		},
	}
}

const noFilesMs = 60_000
const stopRounds = 4

const isOver = ({ state }: Sighting) => state === "failed" || state === "succeeded" || state === "interrupted"
