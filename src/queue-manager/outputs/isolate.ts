// Gives a job's files a directory of their own before any worker has it, in the workflow's bytes: a worker that submits
// what it gets, as it is, writes where only this attempt writes. Nothing else of the text is touched; numbers in it may
// be larger than what JavaScript can hold.
import { scanJson } from "../http/json-scan.ts"
import { type AttemptName, attemptDirectory, baseNameOf, type Tokens, tokenOf } from "./prefix.ts"

/**
 * The workflow with every `filename_prefix` set to `cq/<day>/<job>/a<attempt>/<node>~<base name>`; the same bytes where
 * there is none.
 * @param workflow JSON text of an object, as it was checked when it came
 */
export async function isolateWorkflow(workflow: Buffer, name: AttemptName): Promise<Buffer> {
	const { inputs } = await scanJson(workflow, "filename_prefix")
	if (inputs.length === 0) return workflow
	const directory = attemptDirectory(name)
	const taken: Tokens = new Map()
	// In the order in which an object has them, so that names come out as planOutputs makes them.
	const nodes = Object.keys(Object.fromEntries(inputs.map(({ node }) => [node, true])))
	const tokens = new Map(nodes.map((node) => [node, tokenOf(node, taken)]))
	const parts: Buffer[] = []
	let copied = 0
	for (const { node, span } of inputs) {
		const prefix: unknown = JSON.parse(workflow.toString("utf8", span.start, span.end))
		parts.push(workflow.subarray(copied, span.start))
		parts.push(Buffer.from(JSON.stringify(`${directory}/${tokens.get(node)}~${baseNameOf(prefix)}`)))
		copied = span.end
	}
	return Buffer.concat([...parts, workflow.subarray(copied)])
}
