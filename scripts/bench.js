// npm run bench -- P11: measures one of the speed goals. Plain JavaScript: an old Node hands over to the pinned one.
import { spawnSync } from "node:child_process"
import { existsSync } from "node:fs"
import { fileURLToPath } from "node:url"

const here = (path) => fileURLToPath(new URL(path, import.meta.url))
const [goal = "", ...rest] = process.argv.slice(2)
const file = here(`../bench/${goal}.ts`)

if (!/^P\d+$/.test(goal) || !existsSync(file)) {
	console.error("usage: npm run bench -- P11   (bench/ holds one file per goal)")
	process.exitCode = 2
} else {
	const pinned = here(`../node_modules/node-linux-${process.arch}/bin/node`)
	const node = existsSync(pinned) ? pinned : process.execPath
	process.exitCode = spawnSync(node, [file, ...rest], { stdio: "inherit" }).status ?? 1
}
