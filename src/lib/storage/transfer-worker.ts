// The thread that hashes and moves bytes: an entry point of its own, in the bundle, too.
import { parentPort } from "node:worker_threads"
import { extendHash, finishHash, moveBlock } from "./block-job.ts"
import { hashWhole } from "./hash-job.ts"
import { measurePart, sendPart } from "./part-job.ts"
import { type Answer, failureOf, type JobName, type Jobs, type Request } from "./worker-pool.ts"

const jobs: { [N in JobName]: (input: Jobs[N]["input"]) => Promise<Jobs[N]["output"]> } = {
	hash: hashWhole,
	block: moveBlock,
	extend: async (input) => void (await extendHash(input)),
	finish: finishHash,
	measure: measurePart,
	send: sendPart,
}

const answer = (message: Answer) => parentPort?.postMessage(message)

parentPort?.on("message", ({ id, name, input }: Request) => {
	const job = jobs[name] as (input: unknown) => Promise<unknown>
	job(input).then(
		(output) => answer({ id, output }),
		(error: unknown) => answer({ id, failure: failureOf(error) }),
	)
})
