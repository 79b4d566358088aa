// Preloaded into comfyume (`node --import`): ends it with SIGKILL (or what else is asked for) right before the n-th time that it would change
// something, or right after it has started a program that does. Nothing is left to luck: every n is tried in turn.
import childProcess from "node:child_process"
import { closeSync, openSync, writeSync } from "node:fs"
import fs from "node:fs/promises"
import { syncBuiltinESMExports } from "node:module"

const killAt = Number(process.env.COMFYUME_TEST_KILL_AT)
const log = process.env.COMFYUME_TEST_KILL_LOG ?? ""
const signal = process.env.COMFYUME_TEST_KILL_SIGNAL ?? "SIGKILL"
// These write for a while, and go on when comfyume is gone.
const writers = /^(tar|git (-C \S+ )?(clone|fetch|checkout))\b/
const others = /^(chmod|chown|xargs|cp|sync|systemctl (start|stop|restart)|tailscale up)\b/
let changes = 0

function change(what: string): void {
	changes++
	if (changes !== killAt) return
	const file = openSync(log, "a")
	writeSync(file, what)
	closeSync(file)
	process.kill(process.pid, signal)
}

type Changing = "rename" | "link" | "open" | "writeFile" | "appendFile"
const replace = <Name extends Changing>(name: Name, isChange: (args: readonly unknown[]) => boolean) => {
	const original = fs[name] as (...args: unknown[]) => unknown
	Object.assign(fs, {
		[name]: (...args: unknown[]) => {
			if (isChange(args)) change(`${name} ${args.filter((arg) => typeof arg === "string").join(" ")}`)
			return original.apply(fs, args)
		},
	})
}
for (const name of ["rename", "link", "writeFile", "appendFile"] as const) replace(name, () => true)
replace("open", ([, flags]) =>
	typeof flags === "number" ? (flags & fs.constants.O_CREAT) !== 0 : flags !== undefined && flags !== "r",
)

// A file that is open, and empty or half full.
const handle = await fs.open(import.meta.filename)
const handles = Object.getPrototypeOf(handle) as Record<string, (...args: unknown[]) => unknown>
await handle.close()
for (const name of ["write", "appendFile", "writeFile"]) {
	const original = handles[name]
	if (original === undefined) throw new Error(`file handles have no ${name}`)
	handles[name] = function (this: unknown, ...args: unknown[]) {
		change(`${name} into an open file`)
		return original.apply(this, args)
	}
}

const spawn = childProcess.spawn as (...args: unknown[]) => unknown
Object.assign(childProcess, {
	spawn: (...args: unknown[]) => {
		const [program = "", words = []] = args as [string?, string[]?]
		const line = [program, ...words.slice(0, 3)].join(" ")
		if (writers.test(line) || others.test(line)) change(`before ${line}`)
		const child = spawn.apply(childProcess, args)
		if (writers.test(line)) change(`during ${line}`)
		return child
	},
})
syncBuiltinESMExports()
