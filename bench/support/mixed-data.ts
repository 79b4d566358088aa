// What a backup of a workshop's host holds, as data to pack: pictures, a program, source text, workflows. Made once.
import { randomFillSync } from "node:crypto"
import {
	closeSync,
	existsSync,
	mkdirSync,
	openSync,
	readdirSync,
	readFileSync,
	readSync,
	rmSync,
	writeFileSync,
} from "node:fs"
import { extname, join } from "node:path"
import { scratch } from "./files.ts"
import { root } from "./measure.ts"

const megabyte = 1_000_000

/** The directory that holds 400 MB of it. */
export function mixedData(): string {
	const directory = join(scratch, "mixed")
	const made = join(scratch, "mixed.made")
	if (existsSync(made)) return directory
	rmSync(directory, { recursive: true, force: true })
	for (const name of ["pictures", "programs", "source", "workflows"])
		mkdirSync(join(directory, name), { recursive: true })
	// A picture is compressed already: to a packer it is noise.
	for (let number = 0; number < 80; number++)
		writeFileSync(join(directory, `pictures/${number}.png`), randomFillSync(Buffer.alloc(2 * megabyte)))
	const left = copyText(join(root, "node_modules"), join(directory, "source"), 100 * megabyte)
	writeFileSync(join(directory, "programs/node"), beginningOf(process.execPath, 100 * megabyte + left))
	for (let number = 0; number < 400; number++)
		writeFileSync(join(directory, `workflows/${number}.json`), workflow(number, megabyte / 10))
	writeFileSync(made, "")
	return directory
}

function beginningOf(file: string, bytes: number): Buffer {
	const descriptor = openSync(file, "r")
	const buffer = Buffer.alloc(bytes)
	const count = readSync(descriptor, buffer, 0, bytes, 0)
	closeSync(descriptor)
	return buffer.subarray(0, count)
}

const textNames = new Set([".js", ".mjs", ".cjs", ".ts", ".json", ".md", ".map"])

/** Files of text as they lie there, in the order of their names, until it is enough. @returns bytes still wanted */
function copyText(from: string, to: string, bytes: number): number {
	let left = bytes
	const names = readdirSync(from, { recursive: true, encoding: "utf8" }).sort()
	for (const [index, name] of names.entries()) {
		if (left <= 0) break
		if (!textNames.has(extname(name))) continue
		const text = readOrNothing(join(from, name))
		if (text === undefined || text.length > left) continue
		writeFileSync(join(to, `${index}${extname(name)}`), text)
		left -= text.length
	}
	return left
}

// A directory can be called `chart.js`.
function readOrNothing(file: string): Buffer | undefined {
	try {
		return readFileSync(file)
	} catch {
		return undefined
	}
}

/** Nodes of ComfyUI with other numbers in each. */
function workflow(seed: number, bytes: number): string {
	let value = seed + 1
	const next = (below: number) => {
		value = (Math.imul(value, 1103515245) + 12345) >>> 0
		return (value >>> 8) % below
	}
	const types = [
		"KSampler",
		"CLIPTextEncode",
		"VAEDecode",
		"LoraLoader",
		"SaveImage",
		"CheckpointLoaderSimple",
	]
	const nodes: object[] = []
	for (let length = 0; length < bytes; ) {
		const node = {
			id: nodes.length + 1,
			type: types[next(types.length)],
			pos: [next(4000), next(4000)],
			size: { 0: 200 + next(400), 1: 60 + next(600) },
			inputs: [{ name: "model", type: "MODEL", link: next(9000) }],
			outputs: [{ name: "LATENT", type: "LATENT", links: [next(9000)], slot_index: 0 }],
			widgets_values: [next(2 ** 24), "randomize", 20 + next(30), next(100) / 10, "euler", "normal", 1],
		}
		nodes.push(node)
		length += JSON.stringify(node, undefined, 2).length
	}
	return JSON.stringify({ last_node_id: nodes.length, nodes, version: 0.4 }, undefined, 2)
}
