// `npm run demo`: a server is backed up, lost and restored, on any machine, with nothing configured and without root.
// Plain JavaScript: it runs on whatever Node is there and hands over to the pinned one.
import { spawnSync } from "node:child_process"
import { ensureAptPackages, ensureDependencies, pinnedNode, repository } from "./setup.js"

const needs = [
	{ package: "git", program: "git", for: "the project's code" },
	{ package: "zstd", program: "zstd", for: "archives" },
	{ package: "openssh-client", program: "ssh-keygen", for: "the server's host keys" },
]

try {
	ensureDependencies()
	const missing = ensureAptPackages(needs)
	for (const { program, because } of missing) console.error(`${program} is missing: ${because}`)
	process.exitCode = missing.length > 0 ? 2 : runDemo(process.argv.slice(2))
} catch (error) {
	console.error(error.message)
	process.exitCode = 2
}

function runDemo(words) {
	const file = words.includes("--instance") ? "instance.ts" : "directory.ts"
	const demo = spawnSync(pinnedNode, [`scripts/demo/${file}`, ...words], {
		cwd: repository,
		stdio: "inherit",
	})
	return demo.status ?? 1
}
