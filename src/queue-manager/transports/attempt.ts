// One attempt of a job at transport 3: what it is called, and what is remembered of it beside its files.

import type { Files } from "../outputs/file-pool.ts"
import { type AttemptName, attemptDirectory, planOutputs, WorkflowRefused } from "../outputs/prefix.ts"
import { StartFailed, type TransportJob } from "../transport.ts"
import { field } from "./comfyui-client.ts"
import type { Accepted } from "./submit.ts"

/** An attempt that was accepted; as JSON it lies beside the files, for a queue manager that starts anew. */
export type Run = Accepted & { endpoint: string; acceptedMs: number }

/** Names an attempt within this process. */
export const keyOf = ({ id, attempt }: TransportJob) => `${id}/${attempt}`
/** @param submission from 1 */
export const nameOf = ({ id, attempt, createdMs }: TransportJob, submission: number): AttemptName => ({
	job: id,
	attempt,
	submission,
	createdAt: new Date(createdMs),
})

/** The workflow as an object; anything else is taken for one without nodes. */
export function parseWorkflow(job: TransportJob): Record<string, unknown> {
	const parsed: unknown = JSON.parse(job.workflow.toString("utf8"))
	return typeof parsed === "object" && parsed !== null ? (parsed as Record<string, unknown>) : {}
}

/** Which submissions of an attempt have a directory; none where the share doesn't answer. */
export async function submissionsOf(files: Files, shareRoot: string, job: TransportJob) {
	const directory = attemptDirectory(nameOf(job, 1))
	const path = directory.slice(0, directory.lastIndexOf("/"))
	const names = await files.names({ root: shareRoot, path }).catch(() => [])
	return names.flatMap((name) => {
		const match = /^a(\d+)(?:-(\d+))?$/.exec(name)
		return match !== null && Number(match[1]) === job.attempt ? [Number(match[2] ?? 1)] : []
	})
}

/** Reads what is remembered. The GPU's side can write there too: nothing of it is trusted beyond its form. */
export function parseRun(text: string, submission: number): Run | undefined {
	try {
		const value: unknown = JSON.parse(text)
		const [endpoint, acceptedMs, number] = ["endpoint", "acceptedMs", "number"].map((key) =>
			field(value, key),
		)
		const nodeErrors = field(value, "nodeErrors")
		if (typeof endpoint !== "string" || typeof acceptedMs !== "number" || typeof number !== "number")
			return undefined
		const errors = typeof nodeErrors === "object" && nodeErrors !== null ? { ...nodeErrors } : {}
		return { submission, endpoint, acceptedMs, number, nodeErrors: errors as Record<string, unknown> }
	} catch {
		return undefined
	}
}

/** @throws {StartFailed} for a workflow that can't be run with its outputs matched to it */
export function checkedWorkflow(job: TransportJob): Record<string, unknown> {
	const workflow = parseWorkflow(job)
	try {
		planOutputs(workflow, nameOf(job, 1))
	} catch (error) {
		if (!(error instanceof WorkflowRefused)) throw error
		throw new StartFailed(error.message, { reason: "invalid", ...(error.hint && { hint: error.hint }) })
	}
	return workflow
}
