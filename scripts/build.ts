// npm run build: the CLI as one split bundle in dist/cli, so that it starts without node_modules and loads what it needs.
import { rm } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import { build } from "esbuild"

const root = fileURLToPath(new URL("..", import.meta.url))

if (import.meta.main) await buildCli(`${root}dist/cli`)

/** Bundles the CLI into a directory, which is made anew. */
export async function buildCli(outdir: string): Promise<void> {
	await rm(outdir, { recursive: true, force: true })
	await build({
		absWorkingDir: root,
		entryPoints: ["src/cli.ts"],
		outdir,
		bundle: true,
		splitting: true,
		format: "esm",
		platform: "node",
		target: "node22.15",
		minifySyntax: true,
		minifyWhitespace: true,
		// The AWS SDK's dynamic imports break with the order that `platform: node` brings.
		mainFields: ["module", "main"],
		// ssh2's optional native parts; it does without.
		external: ["cpu-features", "*.node"],
		// For the CommonJS packages among the bundled ones.
		banner: {
			js: [
				// Made when it is first called: making it takes 3 ms, and most starts need none.
				"let __made;" +
					"const require=(id)=>(__made??=process.getBuiltinModule('module').createRequire(import.meta.url))(id)",
				"__filename=import.meta.filename,__dirname=import.meta.dirname",
			].join(","),
		},
		logLevel: "warning",
	})
}
