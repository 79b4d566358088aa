#!/usr/bin/env node
// The launcher: JavaScript that even Node 12 can read. On a Node that is too old it hands over to the pinned one.
// biome-ignore lint/style/useNodejsImportProtocol: the prefix came with 12.20, and older ones shall hear our words
import { spawn } from "child_process"
// biome-ignore lint/style/useNodejsImportProtocol: the prefix came with 12.20, and older ones shall hear our words
import { existsSync } from "fs"
// biome-ignore lint/style/useNodejsImportProtocol: the prefix came with 12.20, and older ones shall hear our words
import { fileURLToPath } from "url"

const here = (path) => fileURLToPath(new URL(path, import.meta.url))

// The npm package has no src. Where there is one, this is a clone, and what was once built there may be stale.
const source = here("../src/cli.ts")
const program = existsSync(source) ? source : here("../dist/cli/cli.js")
const pinned = here(`../node_modules/node-linux-${process.arch}/bin/node`)

// Of a clone alone: TypeScript is read in a third of the time. Never in a directory that others can write, as /tmp is:
// what lies there is executed.
const cache = program === source ? here("../node_modules/.cache/comfyume") : undefined

if (isNewEnough()) {
	if (cache !== undefined) process.getBuiltinModule("module").enableCompileCache(cache)
	import(new URL(program === source ? "../src/cli.ts" : "../dist/cli/cli.js", import.meta.url).href).catch(
		(error) => {
			const isUnbuilt = error && error.code === "ERR_MODULE_NOT_FOUND" && !existsSync(program)
			console.error(isUnbuilt ? "comfyume: it is not built\n  next: npm run build" : error)
			process.exitCode = isUnbuilt ? 2 : 1
		},
	)
} else if (existsSync(pinned)) {
	handOver()
} else {
	console.error(
		`comfyume: Node ${process.versions.node} is too old: it takes 22.18 or newer\n` +
			"  next: npm ci (brings its own Node on Linux), or install Node 24 from https://nodejs.org",
	)
	process.exitCode = 2
}

function isNewEnough() {
	const [major, minor] = process.versions.node.split(".").map(Number)
	if (major < 22 || (major === 22 && minor < 15)) return false
	// Between 22.15 and 22.18, Node reads the built program but not the TypeScript of a clone.
	return program !== source || Boolean(process.features.typescript)
}

function handOver() {
	// Before the child is there: it may be up, and somebody may stop us, before we come to the next line.
	const early = []
	let send = (name) => early.push(name)
	for (const name of ["SIGINT", "SIGTERM", "SIGHUP"]) {
		process.on(name, () => {
			// A terminal sends these two to both of us, and a second one would end the child before it has cleaned up.
			if (name !== "SIGTERM" && process.stdin.isTTY) return
			send(name)
		})
	}
	const child = spawn(pinned, [program].concat(process.argv.slice(2)), {
		stdio: "inherit",
		env: cache === undefined ? process.env : Object.assign({ NODE_COMPILE_CACHE: cache }, process.env),
	})
	send = (name) => child.kill(name)
	early.forEach(send)
	child.on("error", (error) => {
		console.error(`comfyume: ${pinned} can't be started: ${error.message}\n  next: npm ci`)
		process.exitCode = 2
	})
	child.on("exit", (exitCode, signal) => {
		if (signal === null) process.exit(exitCode)
		process.removeAllListeners(signal)
		process.kill(process.pid, signal)
	})
}
