// npm run bench -- P1 P3 [--quick]: measures speed goals, and renews the table in docs/benchmarks.md. Plain JavaScript:
// an old Node hands over to the pinned one.
import { spawnSync } from "node:child_process"
import { existsSync, readdirSync } from "node:fs"
import { fileURLToPath } from "node:url"

const here = (path) => fileURLToPath(new URL(path, import.meta.url))
const given = process.argv.slice(2)
const options = given.filter((argument) => argument.startsWith("--"))
const all = readdirSync(here("../bench")).flatMap(
	(file) => /^(P\d+|queue-library)\.ts$/.exec(file)?.[1] ?? [],
)
const named = given.filter((argument) => !argument.startsWith("--"))
// The comparison with a queue library has no goal to reach, and is asked for by its name.
const measured = all.filter((name) => name.startsWith("P")).sort((a, b) => a.slice(1) - b.slice(1))
const goals = named.includes("all") ? measured : named

if (goals.length === 0 || goals.some((goal) => !all.includes(goal))) {
	console.error(`usage: npm run bench -- all|${all.join("|")} … [--quick]`)
	process.exitCode = 2
} else {
	const pinned = here(`../node_modules/node-linux-${process.arch}/bin/node`)
	const node = existsSync(pinned) ? pinned : process.execPath
	const run = (file, argv) => spawnSync(node, [here(file), ...argv], { stdio: "inherit" }).status ?? 1
	run("../bench/support/bundle.ts", [])
	const ended = goals.map((goal) => {
		const bundled = `../dist/bench/${goal}.js`
		return run(existsSync(here(bundled)) ? bundled : `../bench/${goal}.ts`, options)
	})
	ended.push(run("../bench/support/table.ts", []))
	process.exitCode = ended.find((status) => status !== 0) ?? 0
}
