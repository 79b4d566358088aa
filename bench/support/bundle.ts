// The measurements as one split bundle in dist/bench, so that comfyume is measured as it is shipped.
import { readdirSync, rmSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { build } from "esbuild"

const root = fileURLToPath(new URL("../..", import.meta.url))
// P8, P10, P11, P15, P20 and P21 measure what is shipped as it is, and build it.
const builders = ["P8.ts", "P10.ts", "P11.ts", "P15.ts", "P20.ts", "P21.ts"]
const goals = readdirSync(`${root}bench`).filter(
	(file) => /^P\d+\.ts$/.test(file) && !builders.includes(file),
)
rmSync(`${root}dist/bench`, { recursive: true, force: true })
await build({
	absWorkingDir: root,
	entryPoints: [
		...goals.map((file) => ({ in: `bench/${file}`, out: file.replace(/\.ts$/, "") })),
		{ in: "bench/support/sink.ts", out: "sink" },
		{ in: "src/lib/storage/transfer-worker.ts", out: "transfer-worker" },
	],
	outdir: "dist/bench",
	bundle: true,
	splitting: true,
	format: "esm",
	platform: "node",
	target: "node22.15",
	mainFields: ["module", "main"],
	banner: { js: "const require=process.getBuiltinModule('module').createRequire(import.meta.url)" },
	logLevel: "warning",
})
