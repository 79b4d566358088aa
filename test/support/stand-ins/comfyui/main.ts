// The ComfyUI stand-in as a program, in the containers of the stack's tests: ComfyUI's options, its page, the files of
// /userdata, and for the tests a look at what arrived.
import { mkdirSync, writeFileSync } from "node:fs"
import type { IncomingMessage, ServerResponse } from "node:http"
import { dirname, join } from "node:path"
import { parseArgs } from "node:util"
import { startComfyui } from "../../comfyui.ts"

const { values } = parseArgs({
	options: {
		listen: { type: "string", default: "127.0.0.1" },
		port: { type: "string", default: "8188" },
		"output-directory": { type: "string", default: "/outputs" },
		"input-directory": { type: "string" },
		"extra-model-paths-config": { type: "string" },
		cpu: { type: "boolean" },
	},
})
const user = join(process.cwd(), "user/default")
const last: { method: string; url: string; headers: IncomingMessage["headers"] }[] = []

/** What the tests' ComfyUI doesn't answer by itself. */
function answer(request: IncomingMessage, response: ServerResponse): boolean {
	const { method = "", url = "", headers } = request
	const say = (status: number, value: unknown) => {
		response.writeHead(status, { "content-type": "application/json", "x-stand-in": "comfyui" })
		response.end(JSON.stringify(value))
	}
	if (url === "/stand-in/last") {
		say(200, last.at(-1) ?? null)
		return true
	}
	last.splice(0, Math.max(0, last.length - 20))
	last.push({ method, url, headers })
	if (url === "/") {
		response.writeHead(200, { "content-type": "text/html" })
		response.end("<!doctype html><title>ComfyUI</title><p>A stand-in: there is no ComfyUI here.</p>")
		return true
	}
	if (url === "/object_info") {
		say(200, {})
		return true
	}
	if (url === "/stand-in/count") {
		let bytes = 0
		request.on("data", (chunk: Buffer) => {
			bytes += chunk.length
		})
		request.on("end", () => say(200, { bytes }))
		return true
	}
	const file = /^\/userdata\/([^/?]+)(?:\?|$)/.exec(url)?.[1]
	if (file !== undefined && method === "POST") {
		const path = join(user, decodeURIComponent(file))
		if (!path.startsWith(`${user}/`)) {
			say(403, null)
			return true
		}
		const chunks: Buffer[] = []
		request.on("data", (chunk: Buffer) => chunks.push(chunk))
		request.on("end", () => {
			mkdirSync(dirname(path), { recursive: true })
			writeFileSync(path, Buffer.concat(chunks))
			say(200, decodeURIComponent(file))
		})
		return true
	}
	// As aiohttp: a path with another slash in it is another route, and there only GET is taken.
	if (url.startsWith("/userdata/") && method === "POST") {
		say(405, null)
		return true
	}
	return false
}

const comfyui = await startComfyui({
	outputDirectory: values["output-directory"],
	host: values.listen,
	port: Number(values.port),
	answer,
	timing: { runMs: 50, pngEmptyMs: 50, mp4HeadMs: 50, batchGapMs: 50 },
})
process.once("SIGTERM", () => void comfyui[Symbol.asyncDispose]().then(() => process.exit(0)))
console.log(`a stand-in for ComfyUI: ${comfyui.url}`)
