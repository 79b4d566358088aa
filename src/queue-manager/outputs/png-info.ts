// What ComfyUI writes into pictures beside the prompt, so that a result can be opened as a workflow again.

/**
 * Puts a job's `metadata.extra_pnginfo` beside its prompt, as ComfyUI's frontend posts both. The workflow's bytes stay.
 * @param workflow JSON text of an object
 * @param metadata JSON text of an object
 */
export function withPngInfo(workflow: Buffer, metadata: Buffer): Buffer {
	if (!metadata.includes('"extra_pnginfo"')) return workflow
	const { extra_pnginfo } = JSON.parse(metadata.toString()) as { extra_pnginfo?: unknown }
	if (typeof extra_pnginfo !== "object" || extra_pnginfo === null || isWrapped(workflow)) return workflow
	const extra = JSON.stringify({ extra_pnginfo })
	return Buffer.concat([Buffer.from('{"prompt":'), workflow, Buffer.from(`,"extra_data":${extra}}`)])
}

// A node may be called "prompt"; the frontend's own wrapping has no class there.
function isWrapped(workflow: Buffer): boolean {
	const { prompt } = JSON.parse(workflow.toString()) as { prompt?: { class_type?: unknown } }
	return typeof prompt === "object" && prompt !== null && prompt.class_type === undefined
}
