// The demo without root: the server is a directory, and says so. All else is what the real command does: archives,
// digests, an S3 server that checks signatures, git.
import { spawn, spawnSync } from "node:child_process"
import { createHash } from "node:crypto"
import {
	closeSync,
	lstatSync,
	mkdtempSync,
	openSync,
	readdirSync,
	readFileSync,
	readlinkSync,
	readSync,
	renameSync,
	rmSync,
	writeFileSync,
	writeSync,
} from "node:fs"
import { mkdir } from "node:fs/promises"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { makeModel } from "../../test/support/model-maker.ts"
import { startS3Server } from "../../test/support/s3-server/index.ts"
import { fillServer, freshServer, makeRemote, tailscaleAddressOf } from "../../test/support/server-files.ts"
import { act, say, type } from "./tell.ts"

const repository = fileURLToPath(new URL("../..", import.meta.url))
const world = mkdtempSync(join(tmpdir(), "comfyume-demo-"))
const server = join(world, "server")
const configuration = join(world, "comfyume.yaml")
const credentials = { accessKeyId: "demo-key-id", secretAccessKey: "demo-secret-access-key" }
/** What a backup takes and a restore must bring back; the caches and the work of comfyume itself are no part of it. */
const kept = ["etc/ssh", "etc/ufw", "etc/default", "etc/fail2ban", "home/dev"]
const leftOut = new Set([".git", ".cache", ".comfyume", ".replaced"])
const models = join(world, "share/models/shared")
const manifest = join(world, "models.yaml")

act(1, "A small world")
await mkdir(join(world, "share"))
makeRemote(join(world, "project.git"))
await fillServer(server, join(world, "project.git"))
const address = tailscaleAddressOf(server)
await using r2 = await startS3Server({
	buckets: ["cache-backups", "model-vault"],
	credentials: [credentials],
	directory: join(world, "r2"),
})
writeFileSync(configuration, configurationText())
await fillModels()
writeFileSync(join(world, "secrets.env"), secretsText(), { mode: 0o600 })
const before = inventory(server)
say(
	`In ${world}: a server with ${before.size} files and links and the Tailscale address ${address}, a share with three models, an S3 server in R2's place, and a git remote. The server is a stand-in: a directory, with small stand-ins for the programs of a real machine. \`npm run demo -- --instance\` does the same with a real one.`,
)

act(2, "The server is backed up")
await comfyume("backup", "--manifest", manifest)

act(3, "The server is lost, and a snapshot on the share is damaged")
renameSync(server, join(world, "lost-server"))
await freshServer(server)
const damaged = flipOneBit(join(world, "share/cache/backups/sandbox/home"))
say(
	`The server is gone. A fresh machine stands in its place, with an identity of its own. And so that there is something to see: one bit of ${damaged} on the share is flipped.`,
)

act(4, "It is restored onto the fresh machine")
await comfyume("restore", "--identity-is-free", "--manifest", manifest)

act(5, "Is it what was lost?")
const after = inventory(server)
const differing = [...before].filter(([path, what]) => after.get(path) !== what).map(([path]) => path)
const addressNow = tailscaleAddressOf(server)
say(
	differing.length === 0
		? `All ${before.size} files and links are byte for byte the lost server's: compared here, without comfyume, by content and mode.`
		: `These differ: ${differing.join(", ")}`,
)
say(`Its Tailscale address is ${addressNow}, as before: ${addressNow === address ? "yes" : "NO"}.`)

act(6, "Models are damaged, in ways that nobody sees")
const style = join(models, "loras/style.safetensors")
const good = sha256(style)
damageModels(style)
say(
	"One bit of loras/style.safetensors is flipped, vae/decoder.safetensors is a Git LFS pointer, and text_encoders/words.safetensors is gone.",
)
const deep = ["--manifest", manifest, "--level", "digest"]
await comfyume("verify-models", ...deep, { expected: 3 })

act(7, "They are put right")
await comfyume("verify-models", "--heal", ...deep)
const healed = sha256(style) === good
say(
	`Of loras/style.safetensors only the damaged block was fetched. sha256, computed here without comfyume: ${healed ? "as before" : "DIFFERENT"}.`,
)

const cli = `node ${join(repository, "bin/comfyume.js")}`
type(
	`${cli} restore --env sandbox --config ${configuration} --manifest ${manifest} --from share,git`,
	"What to try next. Run it again: nothing is applied. (The S3 server ends with this demo, hence --from.)",
)
type(
	`${cli} backup --env sandbox --config ${configuration} --dry-run`,
	"See what a backup would do, with R2 unreachable:",
)
type(`${cli} config check --config ${configuration}`, "Look at the configuration:")
type(`rm -r ${world}`, "And when you are done:")
process.exitCode = differing.length === 0 && addressNow === address && healed ? 0 : 1

/** Runs the command line as a person would; the demo ends when it doesn't end as it should. */
async function comfyume(command: string, ...given: (string | { expected: number })[]): Promise<void> {
	const words = given.filter((word) => typeof word === "string")
	const { expected } = given.find((word) => typeof word !== "string") ?? { expected: 0 }
	const argv = [command, "--env", "sandbox", ...words]
	say(`$ comfyume ${argv.join(" ")}\n`)
	const child = spawn(
		process.execPath,
		[join(repository, "bin/comfyume.js"), ...argv, "--config", configuration],
		{ stdio: "inherit" },
	)
	const [exitCode] = await new Promise<[number | null]>((resolve) =>
		child.once("close", (code) => resolve([code])),
	)
	if (exitCode === expected && expected !== 0) say(`\n(It ended with ${exitCode}.)`)
	if (exitCode === expected) return
	say(`comfyume ${command} ended with ${exitCode}, and the demo with it. Everything is left in ${world}.`)
	process.exit(1)
}

function configurationText(): string {
	const remote = join(world, "project.git")
	return `version: 1
environments:
  sandbox:
    domain: sandbox.example.test
    # The server and the share are directories. Production refuses this line.
    allowStandIns: true
    hosts:
      - name: app-1
        role: app
        connection: directory
        directory: ./server
        tailscaleAddress: ${address}
    share: { filesystem: directory, directory: ./share }
    objectStore:
      provider: s3
      buckets:
        cache: { bucket: cache-backups, endpoint: "${r2.endpoint}" }
        models: { bucket: model-vault, endpoint: "${r2.endpoint}" }
    git:
      project: { remote: ${remote}, branch: main, path: /home/dev/project }
      scripts: { remote: ${remote}, branch: main, path: /home/dev/scripts }
`
}

function secretsText(): string {
	return `R2_ACCESS_KEY_ID=${credentials.accessKeyId}\nR2_SECRET_ACCESS_KEY=${credentials.secretAccessKey}\n`
}

/** Three models on the share, and the manifest that was measured from them. */
async function fillModels(): Promise<void> {
	const sizes = { "loras/style": 50, "text_encoders/words": 3, "vae/decoder": 5 }
	for (const [index, [name, mebibytes]] of Object.entries(sizes).entries()) {
		const file = join(models, `${name}.safetensors`)
		await mkdir(dirname(file), { recursive: true })
		writeFileSync(file, makeModel(mebibytes * 1024 * 1024, index + 1))
	}
	const create = [join(repository, "bin/comfyume.js"), "manifest", "create", "--models", models]
	const made = spawnSync(process.execPath, create, { maxBuffer: 1024 * 1024 })
	if (made.status !== 0) throw new Error(`manifest create failed: ${made.stderr}`)
	writeFileSync(manifest, made.stdout)
}

function damageModels(style: string): void {
	const file = openSync(style, "r+")
	const byte = Buffer.alloc(1)
	const middle = 25 * 1024 * 1024
	readSync(file, byte, 0, 1, middle)
	writeSync(file, Buffer.from([byte.readUInt8() ^ 1]), 0, 1, middle)
	closeSync(file)
	writeFileSync(
		join(models, "vae/decoder.safetensors"),
		"version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 5242880\n",
	)
	rmSync(join(models, "text_encoders/words.safetensors"))
}

function sha256(file: string): string {
	return createHash("sha256").update(readFileSync(file)).digest("hex")
}

/** Path -> type, mode and content of everything that must come back, read without any of comfyume's code. */
function inventory(directory: string): Map<string, string> {
	const found = new Map<string, string>()
	for (const root of kept) {
		for (const entry of readdirSync(join(directory, root), { recursive: true, withFileTypes: true })) {
			const file = join(entry.parentPath, entry.name)
			const path = file.slice(directory.length)
			if (path.split("/").some((part) => leftOut.has(part))) continue
			if (entry.isSymbolicLink()) found.set(path, `link to ${readlinkSync(file)}`)
			if (entry.isFile())
				found.set(
					path,
					`${lstatSync(file).mode.toString(8)} ${createHash("sha256").update(readFileSync(file)).digest("hex")}`,
				)
		}
	}
	return found
}

function flipOneBit(directory: string): string {
	const name = readdirSync(directory).find((entry) => entry.endsWith(".tar.zst"))
	if (name === undefined) throw new Error(`no snapshot in ${directory}`)
	const bytes = readFileSync(join(directory, name))
	const middle = bytes.length >> 1
	bytes[middle] = (bytes[middle] ?? 0) ^ 1
	writeFileSync(join(directory, name), bytes)
	return `home/${name}`
}
