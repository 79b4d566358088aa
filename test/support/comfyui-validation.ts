// How the ComfyUI stand-in judges a prompt before it takes it: as the real one, in its words.

export type PromptNode = { class_type: string; inputs: Record<string, unknown> }
export type Prompt = Record<string, PromptNode>
export type Problem = { type: string; message: string; details: string; extra_info: unknown }
export type NodeErrors = Record<
	string,
	{ errors: Problem[]; dependent_outputs: string[]; class_type: string }
>

export type Validated =
	| { state: "valid"; outputs: string[]; nodeErrors: NodeErrors }
	| { state: "invalid"; error: Problem; nodeErrors: NodeErrors }

/** Classes that exist here, with the inputs they need; `isOutput` where they end a graph. */
const classes: Readonly<Record<string, { needs: readonly string[]; isOutput: boolean }>> = {
	EmptyImage: { needs: ["width", "height"], isOutput: false },
	StandInSleep: { needs: ["ms"], isOutput: false },
	StandInFail: { needs: [], isOutput: true },
	SaveImage: { needs: ["images", "filename_prefix"], isOutput: true },
	SaveVideo: { needs: ["video", "filename_prefix"], isOutput: true },
	SaveAudio: { needs: ["audio", "filename_prefix"], isOutput: true },
	VHS_VideoCombine: { needs: ["images", "filename_prefix"], isOutput: true },
}

/** What is valid runs even when something else isn't; nothing valid is 400. */
export function validate(prompt: Prompt): Validated {
	const outputs: string[] = []
	const nodeErrors: NodeErrors = {}
	for (const [node, { class_type }] of Object.entries(prompt)) {
		const known = Object.hasOwn(classes, class_type ?? "") ? classes[class_type] : undefined
		if (known === undefined) {
			const message = `Cannot execute because node ${class_type} does not exist.`
			const error = { type: "invalid_prompt", message, details: `Node ID '#${node}'`, extra_info: {} }
			return { state: "invalid", error, nodeErrors: {} }
		}
		if (known.isOutput) outputs.push(node)
	}
	if (outputs.length === 0)
		return {
			state: "invalid",
			error: { type: "prompt_no_outputs", message: "Prompt has no outputs", details: "", extra_info: {} },
			nodeErrors: {},
		}
	const good = outputs.filter((output) => {
		const sick = firstSick(prompt, output, new Set())
		if (sick === undefined) return true
		const details = sick.missing
		const problem = {
			type: "required_input_missing",
			message: "Required input is missing",
			details,
			extra_info: {},
		}
		nodeErrors[sick.node] = {
			errors: [problem],
			dependent_outputs: [output],
			class_type: prompt[sick.node]?.class_type ?? "",
		}
		return false
	})
	if (good.length > 0) return { state: "valid", outputs: good, nodeErrors }
	const message = "Prompt outputs failed validation"
	return {
		state: "invalid",
		error: { type: "prompt_outputs_failed_validation", message, details: "", extra_info: {} },
		nodeErrors,
	}
}

function firstSick(
	prompt: Prompt,
	node: string,
	seen: Set<string>,
): { node: string; missing: string } | undefined {
	if (seen.has(node)) return undefined
	seen.add(node)
	const given = prompt[node]
	const missing = classes[given?.class_type ?? ""]?.needs.find((name) => given?.inputs[name] === undefined)
	if (missing !== undefined) return { node, missing }
	for (const value of Object.values(given?.inputs ?? {})) {
		if (!Array.isArray(value)) continue
		const from = String(value[0])
		if (prompt[from] === undefined) return { node, missing: from }
		const sick = firstSick(prompt, from, seen)
		if (sick !== undefined) return sick
	}
	return undefined
}
