// How a run at transport 3 ended, in words: from what was seen on the share, and what replicas happened to say.
import type { Delivery } from "../outputs/deliver.ts"
import { type OutputPlan, promptId } from "../outputs/prefix.ts"
import { jobResult } from "../outputs/result.ts"
import type { Watch } from "../outputs/watch.ts"
import type { FailureReason, Outcome, TransportJob } from "../transport.ts"
import { nameOf, type Run } from "./attempt.ts"
import { field, type Sighting } from "./comfyui-client.ts"

/** ComfyUI runs what it found valid, and answers 200 with the errors of the rest: those nodes write nothing. */
export function withoutRefusedNodes(plan: OutputPlan, nodeErrors: Record<string, unknown>): OutputPlan {
	const refused = new Set(
		Object.entries(nodeErrors).flatMap(([node, error]) => {
			const dependents = field(error, "dependent_outputs")
			return [node, ...(Array.isArray(dependents) ? dependents.map(String) : [])]
		}),
	)
	const nodes = plan.nodes.filter(({ node }) => !refused.has(node))
	return nodes.length === 0 ? plan : { ...plan, nodes }
}

/** What will not be delivered, as a list. */
export const refusedOf = (watch: Watch) => [...watch.refused()].map(([name, because]) => ({ name, because }))

/** Completed when every expected node has a file that was delivered. */
export function outcomeOf(
	job: TransportJob,
	run: Run,
	plan: OutputPlan,
	deliveries: readonly Delivery[],
	given: readonly { name: string; because: string }[],
): Outcome {
	const refused = [
		...given.map(({ name, because }) => ({ file: name, because })),
		...deliveries.flatMap((one) =>
			one.state === "delivered" ? [] : [{ file: one.file, because: one.because }],
		),
	]
	const served = new Set(deliveries.flatMap((one) => (one.state === "delivered" ? [one.node] : [])))
	const bare = plan.nodes.filter(({ node }) => !served.has(node))
	if (bare.length > 0) {
		const said = refused.map(({ file, because }) => `${file}: ${because}`).join("; ")
		return failed(
			`node ${bare.map(({ node }) => node).join(", ")} has no file to deliver: ${said}`,
			"outputs-refused",
		)
	}
	const { number, nodeErrors, submission } = run
	const result = jobResult(
		{ promptId: promptId(nameOf(job, submission)), number, nodeErrors, user: job.user },
		deliveries,
	)
	return { state: "completed", result: Buffer.from(JSON.stringify(result)), refused }
}

/** @param options.details ComfyUI's own, for `execution_error` */
export function failed(
	error: string,
	reason: FailureReason,
	{ retryable = false, details }: { retryable?: boolean; details?: unknown } = {},
): Outcome {
	const result = { execution_status: "error", execution_error: details ?? error }
	return { state: "failed", error, reason, retryable, result: Buffer.from(JSON.stringify(result)) }
}

/** What can be said at the end of the time. */
export function timedOut(watch: Watch, best: Sighting["state"], because: string, maxWaitMs: number): Outcome {
	const time = `within ${Math.round(maxWaitMs / 1000)} s`
	const refused = refusedOf(watch)
	if (refused.length > 0 && watch.files().length === 0) {
		const said = refused.map(({ name, because }) => `${name}: ${because}`).join("; ")
		return failed(`nothing came that may be delivered: ${said}`, "outputs-refused")
	}
	const trouble = watch.trouble()
	if (trouble !== undefined)
		return failed(`the share could not be read: ${trouble}`, "share", { retryable: true })
	if (watch.hasBegun()) return failed(`not done ${time}: ${because}`, "slow")
	if (best !== "unseen") return failed(`not done ${time}: ComfyUI had it ${best}, and no file came`, "slow")
	return failed(
		`accepted and never executed: ${time} no file came and no replica that was asked knew of it. It may have run out of memory, or its replica went away; only that replica's log says`,
		"never-executed",
		{ retryable: true },
	)
}
