// Whether a job fits into the GPU's memory.
import type { GpuMemory } from "./comfyui.ts"

/** Where the memory's numbers come from: ComfyUI's `/system_stats`, or something else that knows them. */
export type MemorySource = () => Promise<GpuMemory | undefined>

/** `never`: not even when nothing else is on the GPU. */
export type Fit = { state: "fits" } | { state: "not now" | "never"; because: string }

/** MB that a job needs: `metadata.estimated_vram`, as a number or as text; the default when that is none. */
export function neededMb(metadata: Record<string, unknown>, defaultMb: number): number {
	const said = metadata.estimated_vram
	const value = typeof said === "string" && said.trim() !== "" ? Number(said) : said
	return typeof value === "number" && Number.isFinite(value) && value > 0 ? value : defaultMb
}

/** @param memory undefined when nobody knows: then it is taken to fit */
export function fitOf(memory: GpuMemory | undefined, needMb: number, marginMb: number): Fit {
	if (memory === undefined) return { state: "fits" }
	const wanted = needMb + marginMb
	if (memory.obtainableMb >= wanted) return { state: "fits" }
	const needs = `needs ${needMb} MB of GPU memory and ${marginMb} MB to spare`
	if (memory.totalMb < wanted)
		return { state: "never", because: `${needs}; ${memory.name} has ${memory.totalMb} MB in all` }
	return { state: "not now", because: `${needs}; ${memory.obtainableMb} MB can be had on ${memory.name} now` }
}
