// npm run build: what runs without node_modules. The CLI as a split bundle in dist/cli, which loads what it needs; the
// services as a file each, dist/queue-manager/main.js (with its thread beside it) and dist/worker-agent/main.js.
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises"
import { fileURLToPath } from "node:url"
import { build } from "esbuild"

const root = fileURLToPath(new URL("..", import.meta.url))

// For the CommonJS packages among the bundled ones.
const banner = {
	js: [
		// Made when it is first called: making it takes 3 ms, and most starts need none.
		"let __made;" +
			"const require=(id)=>(__made??=process.getBuiltinModule('module').createRequire(import.meta.url))(id)",
		"__filename=import.meta.filename,__dirname=import.meta.dirname",
	].join(","),
}

if (import.meta.main) {
	await buildCli(`${root}dist/cli`)
	await buildQueueManager(`${root}dist/queue-manager`)
	await buildWorkerAgent(`${root}dist/worker-agent`)
	await buildAuthGate(`${root}dist/auth-gate`)
}

/** Bundles the CLI into a directory, which is made anew. */
export async function buildCli(outdir: string): Promise<void> {
	await rm(outdir, { recursive: true, force: true })
	const { metafile } = await build({
		metafile: true,
		absWorkingDir: root,
		// Threads are started from files of their own, beside the chunks that start them.
		entryPoints: [
			{ in: "src/cli.ts", out: "cli" },
			{ in: "src/lib/storage/transfer-worker.ts", out: "transfer-worker" },
		],
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
		banner,
		logLevel: "warning",
	})
	await writeFile(`${outdir}/THIRD-PARTY-LICENSES.txt`, await licencesOf(Object.keys(metafile.inputs)))
}

/** Bundles the queue manager into a directory, which is made anew: the service, and the threads it starts for files. */
export async function buildQueueManager(outdir: string): Promise<void> {
	await buildService("queue-manager", outdir, [
		{ in: "src/queue-manager/outputs/file-thread.ts", out: "file-thread" },
	])
}

/** Bundles the worker agent into one file of a directory, which is made anew. */
export async function buildWorkerAgent(outdir: string): Promise<void> {
	await buildService("worker-agent", outdir)
	// The image takes over this directory with its owner, and a volume takes it over from the image.
	await mkdir(`${outdir}/state`)
	await writeFile(`${outdir}/state/.keep`, "")
}

/** Bundles the auth gate into one file of a directory, which is made anew. */
export async function buildAuthGate(outdir: string): Promise<void> {
	await buildService("auth-gate", outdir)
}

async function buildService(
	name: "queue-manager" | "worker-agent" | "auth-gate",
	outdir: string,
	threads: { in: string; out: string }[] = [],
): Promise<void> {
	await rm(outdir, { recursive: true, force: true })
	const { version } = JSON.parse(await readFile(`${root}package.json`, "utf8")) as { version: string }
	const { metafile } = await build({
		metafile: true,
		absWorkingDir: root,
		entryPoints: [{ in: `src/${name}/main.ts`, out: "main" }, ...threads],
		outdir,
		bundle: true,
		format: "esm",
		platform: "node",
		target: "node22.15",
		minifySyntax: true,
		minifyWhitespace: true,
		define: { COMFYUME_VERSION: JSON.stringify(version) },
		// Optional native parts of ws, which does without.
		external: ["bufferutil", "utf-8-validate"],
		banner,
		logLevel: "warning",
	})
	await writeFile(`${outdir}/package.json`, `${JSON.stringify({ name, version, type: "module" })}\n`)
	await writeFile(`${outdir}/THIRD-PARTY-LICENSES.txt`, await licencesOf(Object.keys(metafile.inputs)))
}

/** The licences of the packages whose code is in the bundle; most of them ask to be handed on with it. */
async function licencesOf(inputs: readonly string[]): Promise<string> {
	const packages = new Set(
		inputs.flatMap((file) => /^.*node_modules\/(?:@[^/]+\/)?[^/]+/.exec(file)?.[0] ?? []),
	)
	const notices = await Promise.all(
		[...packages].sort().map(async (directory) => {
			const { name, version, license } = JSON.parse(
				await readFile(`${root}${directory}/package.json`, "utf8"),
			) as { name: string; version: string; license?: string }
			const files = (await readdir(root + directory)).filter((file) =>
				/^(licen[cs]e|notice|copying)/i.test(file),
			)
			const texts = await Promise.all(
				files.sort().map((file) => readFile(`${root}${directory}/${file}`, "utf8")),
			)
			return { title: `${name} ${version} (${license ?? "see below"})`, text: texts.join("\n").trim() }
		}),
	)
	const byText = Map.groupBy(notices, ({ text }) => text)
	return [...byText]
		.map(([text, same]) => `${same.map(({ title }) => title).join("\n")}\n\n${text}\n`)
		.join(`\n${"-".repeat(80)}\n\n`)
}
