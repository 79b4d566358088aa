// Whether a picture is this job's own: ComfyUI leaves what ran in the PNG, and that names where its files go.
import type { Inspection } from "./operations.ts"
import { type OutputPlan, prefixOf } from "./prefix.ts"

export type Attribution = { state: "own" } | { state: "unchecked" } | { state: "foreign"; because: string }

/** @param node that wrote the file, by its name */
export function attribute(prompt: Inspection["prompt"], plan: OutputPlan, node: string): Attribution {
	// A server that was started with --disable-metadata leaves none.
	if (prompt.state !== "read") return { state: "unchecked" }
	let parsed: unknown
	try {
		parsed = JSON.parse(prompt.text)
	} catch {
		return { state: "foreign", because: "the prompt in it is not JSON" }
	}
	const found = valueAt(valueAt(valueAt(parsed, node), "inputs"), "filename_prefix")
	if (found === prefixOf(plan, node)) return { state: "own" }
	const said = typeof found === "string" ? JSON.stringify(found.slice(0, 200)) : "nothing"
	return { state: "foreign", because: `the prompt in it says ${said} of where node ${node} writes` }
}

function valueAt(value: unknown, key: string): unknown {
	return typeof value === "object" && value !== null && Object.hasOwn(value, key)
		? (value as Record<string, unknown>)[key]
		: undefined
}
