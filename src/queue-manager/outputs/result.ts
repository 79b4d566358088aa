// A job's result as its clients read it: keyed as ComfyUI's history is.
import type { Delivery } from "./deliver.ts"
import type { OutputKey } from "./kinds.ts"

export type OutputFile = { filename: string; subfolder: string; type: "output" }
type NodeOutputs = Partial<Record<OutputKey, OutputFile[]>> & { animated?: [true] }

export type JobResult = {
	prompt_id: string
	number: number
	node_errors: Record<string, unknown>
	outputs: Record<string, NodeOutputs>
	execution_status: "success"
}

/** @param deliveries of which those that were delivered are named, in the order of their names */
export function jobResult(
	{
		promptId,
		number,
		nodeErrors,
		user,
	}: { promptId: string; number: number; nodeErrors: Record<string, unknown>; user: string },
	deliveries: readonly Delivery[],
): JobResult {
	const outputs = new Map<string, NodeOutputs>()
	const delivered = deliveries.flatMap((delivery) => (delivery.state === "delivered" ? [delivery] : []))
	for (const { node, key, filename, isFilm } of delivered.toSorted((one, other) =>
		one.filename < other.filename ? -1 : 1,
	)) {
		const own = outputs.get(node) ?? {}
		outputs.set(node, own)
		own[key] = [...(own[key] ?? []), { filename, subfolder: user, type: "output" }]
		// By this ComfyUI's own editor knows a film among `images`.
		if (isFilm && key === "images") own.animated = [true]
	}
	return {
		prompt_id: promptId,
		number,
		node_errors: nodeErrors,
		outputs: Object.fromEntries(outputs),
		execution_status: "success",
	}
}
