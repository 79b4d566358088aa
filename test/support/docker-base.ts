// Base images without a registry. One Debian, built once by debootstrap, stands in for every image that a registry would
// give: the real programs of Debian (nginx, redis-server, python3, curl, wget) and the pinned Node, under the names that
// the Dockerfiles and the compose files use. They are no more the registry's images than their names say: the label
// `test.comfyume.stand-in` tells.
import { createHash } from "node:crypto"
import { createReadStream } from "node:fs"
import { chmod, chown, copyFile, mkdir, rename, rm, stat, symlink, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { pipeline } from "node:stream/promises"
import type { Docker } from "./docker.ts"
import { cacheDirectory } from "./instance/base.ts"
import { run } from "./run.ts"

const suite = "bookworm"
const packages = [
	...["nginx", "redis-server", "python3-minimal", "python3-aiohttp"],
	...["curl", "wget", "ca-certificates", "procps"],
]
const about = "Debian 12 in the tests, and not what a registry has under this name"
// Raised when something below changes that isn't part of the hash by itself.
const recipe = JSON.stringify({ version: 4, suite, packages, node: process.version, about })
const recipeDigest = createHash("sha256").update(recipe).digest("hex").slice(0, 12)

/** The names under which the one base is found. */
export const baseImages = {
	nginx: "nginx:1.28-alpine",
	redis: "redis:7-alpine",
	node: "node:24-slim",
	python: "python:3.12-slim-bookworm",
} as const

/** Gives the engine the base images. A minute the first time on a machine, a moment afterwards. */
export async function ensureBaseImages({ docker, lines }: Pick<Docker, "docker" | "lines" | "environment">) {
	const base = `comfyume-test-base:${recipeDigest}`
	const [found] = await lines("images", "--quiet", base)
	if (found === undefined) {
		await docker("load", "--input", await ensureBaseArchive())
		// They were built on another base, and don't know it.
		const old = await lines("images", "--quiet", "--filter", "label=comfyume.inputs")
		if (old.length > 0) await docker("rmi", "--force", ...new Set(old))
	}
	for (const name of Object.values(baseImages)) await docker("tag", base, name)
}

/**
 * Gives the base images as an archive that `docker load` takes, in the cache; makes it when it isn't there yet. No engine
 * is needed for it: an image is a tar with a description.
 */
export async function ensureBaseArchive(): Promise<string> {
	const archive = join(cacheDirectory(), `docker-base-${recipeDigest}.tar.zst`)
	if (await stat(archive).catch(() => undefined)) return archive
	const partial = join(cacheDirectory(), `docker-base.${process.pid}.partial`)
	const [root, image] = [join(partial, "root"), join(partial, "image")]
	try {
		for (const made of [root, image]) await mkdir(made, { recursive: true })
		// In a mount namespace of its own: killed halfway, debootstrap leaves no /proc mounted.
		const options = ["--variant=minbase", `--include=${packages.join(",")}`]
		await run("unshare", ["--mount", "debootstrap", ...options, suite, root], { timeoutMs: 10 * 60_000 })
		await finish(root)
		await describeImage(root, image)
		await run("tar", [
			...["--create", "--use-compress-program=zstd -3 -T2", "--file", join(partial, "archive")],
			...["--directory", image, "."],
		])
		await rename(join(partial, "archive"), archive)
	} finally {
		await rm(partial, { recursive: true, force: true })
	}
	return archive
}

async function finish(root: string): Promise<void> {
	await copyFile(process.execPath, join(root, "usr/local/bin/node"))
	await chmod(join(root, "usr/local/bin/node"), 0o755)
	await symlink("/usr/bin/redis-server", join(root, "usr/local/bin/redis-server"))
	// As Redis's own image has it: a new volume takes over this directory's owner.
	await mkdir(join(root, "data"))
	await chown(join(root, "data"), 999, 1000)
	// As nginx's own image has it: what it writes lies where a read-only container has a tmpfs, and its log is the
	// container's.
	await rm(join(root, "var/lib/nginx"), { recursive: true, force: true })
	await symlink("/var/cache/nginx", join(root, "var/lib/nginx"))
	await mkdir(join(root, "var/cache/nginx"), { recursive: true })
	await rm(join(root, "var/log/nginx"), { recursive: true, force: true })
	await mkdir(join(root, "var/log/nginx"))
	await symlink("/dev/stdout", join(root, "var/log/nginx/access.log"))
	await symlink("/dev/stderr", join(root, "var/log/nginx/error.log"))
	// Debian shuts this directory to all but its own redis user, who has another number; Redis's image has none.
	await rm(join(root, "etc/redis"), { recursive: true, force: true })
	for (const heavy of [
		"usr/share/doc",
		"usr/share/man",
		"usr/share/locale",
		"var/lib/apt/lists",
		"var/cache/apt",
	])
		await rm(join(root, heavy), { recursive: true, force: true })
}

// As `docker save` writes it: https://github.com/moby/docker-image-spec
async function describeImage(root: string, image: string): Promise<void> {
	const layer = join(image, "layer.tar")
	await run("tar", ["--create", "--numeric-owner", "--file", layer, "--directory", root, "."])
	const hash = createHash("sha256")
	await pipeline(createReadStream(layer), hash)
	const configuration = {
		architecture: process.arch === "arm64" ? "arm64" : "amd64",
		os: "linux",
		created: new Date().toISOString(),
		config: {
			Cmd: ["/bin/bash"],
			Env: ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
			Labels: { "test.comfyume.stand-in": about },
		},
		rootfs: { type: "layers", diff_ids: [`sha256:${hash.digest("hex")}`] },
	}
	const tags = [`comfyume-test-base:${recipeDigest}`, ...Object.values(baseImages)]
	await writeFile(join(image, "configuration.json"), JSON.stringify(configuration))
	await writeFile(
		join(image, "manifest.json"),
		JSON.stringify([{ Config: "configuration.json", RepoTags: tags, Layers: ["layer.tar"] }]),
	)
}
