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
				'import{createRequire as __createRequire}from"node:module"',
				'import{fileURLToPath as __toPath}from"node:url"',
				"const require=__createRequire(import.meta.url),__filename=__toPath(import.meta.url),__dirname=__toPath(new URL('.',import.meta.url))",
			].join(";"),
		},
		logLevel: "warning",
	})
}
