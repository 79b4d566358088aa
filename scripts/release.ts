// npm run release -- --arch x64|arm64: comfyume with its own Node, as an archive for hosts. The same inputs give the
// same digest: that of SHA256SUMS, which holds the digest of every file.
import { createHash } from "node:crypto"
import { existsSync } from "node:fs"
import { chmod, cp, mkdir, mkdtemp, readdir, readFile, rename, rm, stat, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join, relative } from "node:path"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { $ } from "zx"
import { buildAuthGate, buildCli, buildQueueManager, buildWorkerAgent } from "./build.ts"

const root = fileURLToPath(new URL("..", import.meta.url))

const launcher = `#!/bin/sh
here=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
unset NODE_OPTIONS
exec "$here/node/bin/node" "$here/dist/cli/cli.js" "$@"
`

const { arch } = parseArgs({ options: { arch: { type: "string", default: process.arch } } }).values
if (arch !== "x64" && arch !== "arm64") throw new Error(`--arch is x64 or arm64, not ${arch}`)
const { version } = JSON.parse(await readFile(`${root}package.json`, "utf8")) as { version: string }

const directory = `${root}dist/release`
const tree = `${directory}/tree-${arch}`
const name = `comfyume-${version}-linux-${arch}`
await rm(tree, { recursive: true, force: true })
await mkdir(`${tree}/bin`, { recursive: true })
await writeFile(`${tree}/bin/comfyume`, launcher)
await buildCli(`${tree}/dist/cli`)
// What the stack's images are built from (src/lib/stack/images.ts): a host needs no clone for it.
await buildQueueManager(`${tree}/dist/queue-manager`)
await buildAuthGate(`${tree}/dist/auth-gate`)
await buildWorkerAgent(`${tree}/dist/worker-agent`)
await putNode(`${tree}/node`)
for (const part of ["manifests", "templates", "LICENSE"])
	if (existsSync(root + part)) await cp(root + part, join(tree, part), { recursive: true })
await writeFile(`${tree}/package.json`, `${JSON.stringify({ name: "comfyume", version, type: "module" })}\n`)

const files = (await readdir(tree, { recursive: true, withFileTypes: true }))
	.filter((entry) => entry.isFile())
	.map((entry) => relative(tree, join(entry.parentPath, entry.name)))
	.sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b)))
const executables = new Set(["bin/comfyume", "node/bin/node"])
const sums: string[] = []
for (const file of files) {
	await chmod(join(tree, file), executables.has(file) ? 0o755 : 0o644)
	sums.push(`${sha256(await readFile(join(tree, file)))}  ${file}\n`)
}
await writeFile(`${tree}/SHA256SUMS`, sums.join(""))
const digest = sha256(sums.join(""))

const archive = `${directory}/${name}.tar.zst`
const settled = [
	"--sort=name",
	"--owner=0",
	"--group=0",
	"--numeric-owner",
	"--mtime=@0",
	"--format=gnu",
	"--mode=u+rw,go+r,go-w",
]
await $`tar --create --directory ${tree} ${settled} . | zstd --quiet -10 -T2 --force -o ${archive}.partial`
await rename(`${archive}.partial`, archive)
const facts = {
	version,
	arch,
	digest,
	sizeBytes: (await stat(archive)).size,
	sha256: sha256(await readFile(archive)),
}
await writeFile(`${directory}/${name}.json`, `${JSON.stringify(facts, undefined, "\t")}\n`)
console.log(`${relative(root, archive)}  ${(facts.sizeBytes / 1e6).toFixed(1)} MB  digest ${digest}`)

/** The Node that the lockfile pins, for the machine the release is for. */
async function putNode(to: string): Promise<void> {
	const wanted = `node-linux-${arch}`
	await mkdir(`${to}/bin`, { recursive: true })
	const here = `${root}node_modules/${wanted}`
	if (existsSync(`${here}/bin/node`)) return takeNode(here, to)

	const lock = JSON.parse(await readFile(`${root}package-lock.json`, "utf8")) as {
		packages: Record<string, { version: string; integrity: string } | undefined>
	}
	const pinned = lock.packages[`node_modules/${wanted}`]
	if (pinned === undefined) throw new Error(`package-lock.json doesn't pin ${wanted}`)
	const scratch = await mkdtemp(join(tmpdir(), "comfyume-node-"))
	try {
		await $`npm pack --silent --pack-destination ${scratch} ${wanted}@${pinned.version}`
		const file = `${scratch}/${wanted}-${pinned.version}.tgz`
		const [algorithm = "", expected] = pinned.integrity.split(/-(.*)/s)
		const actual = createHash(algorithm)
			.update(await readFile(file))
			.digest("base64")
		if (actual !== expected)
			throw new Error(`${wanted}@${pinned.version} is not what package-lock.json pins: ${actual}`)
		await $`tar --extract --gzip --file ${file} --directory ${scratch}`
		await takeNode(`${scratch}/package`, to)
	} finally {
		await rm(scratch, { recursive: true, force: true })
	}
}

async function takeNode(from: string, to: string): Promise<void> {
	await cp(`${from}/bin/node`, `${to}/bin/node`)
	if (existsSync(`${from}/LICENSE`)) await cp(`${from}/LICENSE`, `${to}/LICENSE`)
}

function sha256(content: string | Uint8Array): string {
	return createHash("sha256").update(content).digest("hex")
}
