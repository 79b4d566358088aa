// A package repository for instances, over HTTP: made-up packages, built by the real dpkg-deb, and Tailscale's vendor
// repository beside them with a real signature.
import { createHash } from "node:crypto"
import { chmod, copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { gzipSync } from "node:zlib"
import { run } from "./run.ts"

export type MadeUpPackage = {
	name: string
	version?: string
	/** Shell, run when it is configured. */
	postinst?: string
	/** Path -> content of files that an operator may change. */
	configurationFiles?: Readonly<Record<string, string>>
	/** Path -> the program on this machine that lies there. */
	programs?: Readonly<Record<string, string>>
	/** Path -> the text on this machine that lies there. */
	texts?: Readonly<Record<string, string>>
}

export type AptRepositoryOptions = {
	/** Directory of real packages with their index (test/support/debian-packages.ts), beside the made-up ones. */
	debian?: string
	/** What the vendor has under the name tailscale; else an empty package. */
	tailscale?: Omit<MadeUpPackage, "name">
}

export type AptRepository = {
	/** Lines for `sources.list` that make the packages known. */
	sources: string
	/** What `packages.tailscale.repository` is told. */
	tailscale: string
	/** sha256 of the vendor's key file. */
	keySha256: string
	/** Paths that were asked for, in their order. */
	requests: string[]
	/** Answers nothing but errors while it is true. */
	down: boolean
	/** Where a package's file lies on this machine. */
	file(name: string): string
	[Symbol.asyncDispose](): Promise<void>
}

/** Needs dpkg-deb and gpg. */
export async function startAptRepository(
	address: string,
	packages: readonly MadeUpPackage[],
	{ debian, tailscale = { version: "1.90.0" } }: AptRepositoryOptions = {},
): Promise<AptRepository> {
	const root = await mkdtemp(join(tmpdir(), "comfyume-apt-"))
	const pool = join(root, "pool")
	const stable = join(root, "stable")
	await mkdir(pool)
	for (const made of packages) await build(pool, made)
	await writeFile(join(pool, "Packages"), await indexOf(pool, "./"))

	const binary = join(stable, "debian/dists/bookworm/main/binary-amd64")
	await mkdir(binary, { recursive: true })
	await build(join(stable, "debian"), { ...tailscale, name: "tailscale" })
	const index = await indexOf(join(stable, "debian"), "")
	await writeFile(join(binary, "Packages"), index)
	await writeFile(join(binary, "Packages.gz"), gzipSync(index))
	const key = await sign(join(stable, "debian"), root, [
		["main/binary-amd64/Packages", Buffer.from(index)],
		["main/binary-amd64/Packages.gz", gzipSync(index)],
	])

	const requests: string[] = []
	const repository = { down: false }
	const server = createServer(async (request, response) => {
		const path = decodeURIComponent(new URL(request.url ?? "/", "http://outside").pathname)
		requests.push(path)
		const file =
			debian !== undefined && path.startsWith("/debian/")
				? join(debian, path.slice("/debian".length))
				: join(root, path)
		const content = repository.down ? undefined : await readFile(file).catch(() => undefined)
		response.statusCode = repository.down ? 503 : content === undefined ? 404 : 200
		response.end(content ?? "not here")
	})
	await new Promise<void>((resolve) => server.listen(0, address, resolve))
	const base = `http://${address}:${(server.address() as AddressInfo).port}`
	return {
		sources:
			`deb [trusted=yes] ${base}/pool ./\n` +
			(debian === undefined ? "" : `deb [trusted=yes] ${base}/debian ./\n`),
		tailscale: `${base}/stable`,
		keySha256: createHash("sha256").update(key).digest("hex"),
		requests,
		get down() {
			return repository.down
		},
		set down(is: boolean) {
			repository.down = is
		},
		file: (name) => join(pool, `${name}.deb`),
		[Symbol.asyncDispose]: async () => {
			server.closeAllConnections()
			await new Promise((resolve) => server.close(resolve))
			await rm(root, { recursive: true, force: true })
		},
	}
}

async function build(
	pool: string,
	{ name, version = "1.0", postinst, configurationFiles = {}, programs = {}, texts = {} }: MadeUpPackage,
): Promise<void> {
	const tree = join(pool, `${name}.tree`)
	const control = join(tree, "DEBIAN")
	await mkdir(control, { recursive: true })
	await writeFile(join(control, "control"), controlOf(name, version))
	if (postinst !== undefined) {
		await writeFile(join(control, "postinst"), `#!/bin/sh\nset -e\n${postinst}\n`)
		await chmod(join(control, "postinst"), 0o755)
	}
	for (const [path, content] of Object.entries(configurationFiles)) {
		await mkdir(dirname(join(tree, path)), { recursive: true })
		await writeFile(join(tree, path), content)
	}
	for (const [path, from] of Object.entries({ ...programs, ...texts })) {
		await mkdir(dirname(join(tree, path)), { recursive: true })
		await copyFile(from, join(tree, path))
		await chmod(join(tree, path), path in programs ? 0o755 : 0o644)
	}
	const names = Object.keys(configurationFiles)
	if (names.length > 0)
		await writeFile(join(control, "conffiles"), names.map((path) => `/${path}\n`).join(""))
	await run("dpkg-deb", ["--root-owner-group", "--build", tree, join(pool, `${name}.deb`)])
	await rm(tree, { recursive: true })
}

const controlOf = (name: string, version: string) =>
	`Package: ${name}\nVersion: ${version}\nArchitecture: all\nMaintainer: nobody <nobody@example.test>\nDescription: made up\n`

/** What a repository says of the packages in a directory. */
export async function indexOf(directory: string, prefix: string): Promise<string> {
	const files = (await readdir(directory)).filter((name) => name.endsWith(".deb")).sort()
	const entries = await Promise.all(
		files.map(async (name) => {
			const file = join(directory, name)
			const { stdout: control } = await run("dpkg-deb", ["--field", file])
			const digest = createHash("sha256")
				.update(await readFile(file))
				.digest("hex")
			return `${control.trim()}\nFilename: ${prefix}${name}\nSize: ${(await stat(file)).size}\nSHA256: ${digest}\n`
		}),
	)
	return entries.join("\n")
}

/** Signs a release with a key of its own, as a vendor does, and gives the key as it is published. */
async function sign(
	vendor: string,
	root: string,
	files: readonly (readonly [path: string, content: Buffer])[],
): Promise<Buffer> {
	const home = join(root, "gnupg")
	await mkdir(home, { mode: 0o700 })
	const gpg = ["--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback", "--passphrase", ""]
	await run("gpg", [...gpg, "--quick-generate-key", "vendor@example.test", "ed25519", "sign", "never"])
	const release = join(vendor, "dists/bookworm/Release")
	const lines = files.map(
		([path, content]) => ` ${createHash("sha256").update(content).digest("hex")} ${content.length} ${path}\n`,
	)
	await writeFile(
		release,
		`Origin: made up\nSuite: bookworm\nCodename: bookworm\nArchitectures: amd64 all\nComponents: main\n` +
			`Date: ${new Date().toUTCString().replace("GMT", "UTC")}\nSHA256:\n${lines.join("")}`,
	)
	await run("gpg", [...gpg, "--clearsign", "--output", join(dirname(release), "InRelease"), release])
	const published = join(vendor, "bookworm.noarmor.gpg")
	await run("gpg", [...gpg, "--output", published, "--export", "vendor@example.test"])
	await run("gpgconf", ["--homedir", home, "--kill", "all"])
	return readFile(published)
}
