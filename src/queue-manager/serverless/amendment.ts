// A result with a file more: what came after its job was done is added, never dropped, and never twice.
import type { Amendment } from "../transports/shared-filesystem.ts"

type NodeOutputs = Record<string, unknown>

/** @param result JSON text. @returns the new text; undefined when the file stands there already, or nothing can be added */
export function withAmendment(result: string, { node, key, file }: Amendment): string | undefined {
	const parsed = JSON.parse(result) as { outputs?: Record<string, NodeOutputs> }
	const outputs = parsed.outputs ?? {}
	const own = Object.hasOwn(outputs, node) ? (outputs[node] ?? {}) : {}
	const present = own[key]
	const files: unknown[] = Array.isArray(present) ? present : []
	// Under another key too: a worker names its files as its nodes do.
	const all = Object.values(own).flatMap((value): unknown[] => (Array.isArray(value) ? value : []))
	const isThere = all.some((one) => (one as { filename?: unknown } | null)?.filename === file.filename)
	if (isThere) return undefined
	const changed = { ...outputs, [node]: { ...own, [key]: [...files, file] } }
	return JSON.stringify({ ...parsed, outputs: changed })
}
