// Delivery for workers that fetch their jobs, with threads of its own for the share, and each job's at most once at a
// time: a worker that asks again while its files are being copied waits for the same answer.
import { randomBytes } from "node:crypto"
import { setTimeout as pause } from "node:timers/promises"
import { messageOf } from "../../lib/errors.ts"
import type { Service } from "../service.ts"
import { openCleanUp } from "./clean-up.ts"
import { FileTrouble, openFilePool } from "./file-pool.ts"
import { deliverWorkerOutputs, type WorkerDelivery } from "./worker-outputs.ts"

export type WorkerOutputs = {
	deliver(job: { id: string; user: string; attempt: number }, result: Buffer): Promise<WorkerDelivery>
	/** The attempt's directory isn't needed any more. */
	clear(directory: string): Promise<void>
	/** Removes some of what ended jobs left on the share. @throws what Redis throws */
	cleanUp(): Promise<void>
	/** Threads that a hung share holds. */
	stuck(): number
	close(): Promise<void>
}

// Workers wait a minute for their answer. The copy that is under way then is not ended by this.
const mostMs = 50_000

/** @param outputsRoot the directory that holds the users' directories */
export function openWorkerOutputs(
	{ queue, environment, now, log, metrics }: Omit<Service, "serverless" | "workerOutputs">,
	outputsRoot: string,
): WorkerOutputs {
	const pool = openFilePool({ name: "the share or the outputs" })
	const shareRoot = environment.SFS_OUTPUT_DIR
	const underWay = new Map<string, Promise<WorkerDelivery>>()
	const options = {
		...{ files: pool.files, records: queue.deliveries, shareRoot, outputsRoot },
		clock: { nowMs: now, wait: async (ms: number) => void (await pause(ms)) },
		randomId: () => randomBytes(8).toString("hex"),
		onQuarantined: metrics.quarantined,
	}

	const cleanUp = openCleanUp({
		...{ files: pool.files, shareRoot, nowMs: now },
		find: (ids) => queue.findMany(ids),
	})

	return {
		deliver(job, result) {
			const key = `${job.id}/${job.attempt}`
			const running = underWay.get(key)
			if (running !== undefined) return running
			const parsed = JSON.parse(result.toString("utf8")) as Record<string, unknown>
			const startedMs = now()
			const delivering = Promise.race([
				deliverWorkerOutputs(options, job, parsed),
				pause(mostMs, undefined, { ref: false }).then(() => gaveUp(parsed)),
			])
				.then((delivery) => {
					const { delivered, undelivered, failure } = delivery
					for (const _ of delivered) metrics.deliveryLag((now() - startedMs) / 1000)
					if (undelivered.length > 0)
						log.warn({ job: job.id, undelivered, failure }, "not everything that a worker made was delivered")
					return delivery
				})
				.finally(() => underWay.delete(key))
			underWay.set(key, delivering)
			return delivering
		},
		async clear(directory) {
			try {
				await pool.files.removeTree({ root: shareRoot, path: directory })
			} catch (error) {
				log.warn({ directory, reason: messageOf(error) }, "not removed")
			}
		},
		async cleanUp() {
			try {
				const { removed, failed } = await cleanUp()
				if (removed.length > 0) log.info({ removed }, "removed what ended jobs left on the share")
				if (failed.length > 0) log.warn({ failed }, "what ended jobs left on the share can't be removed")
			} catch (error) {
				if (!(error instanceof FileTrouble)) throw error
				log.warn({ reason: error.message }, "the share could not be cleaned up")
			}
		},
		stuck: pool.stuck,
		close: async () => void (await pool[Symbol.asyncDispose]()),
	}
}

function gaveUp(result: Record<string, unknown>): WorkerDelivery {
	const failure = `its files were not delivered within ${mostMs / 1000} s: the share or the outputs are too slow, or hang`
	return { result, delivered: [], undelivered: [], failure, directory: undefined }
}
