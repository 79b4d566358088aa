// Debian's own packages for instances that see no network: what a restore installs, with all that the base lacks for it,
// fetched once into the cache.
import { createHash } from "node:crypto"
import { copyFile, mkdir, readdir, rename, rm, writeFile } from "node:fs/promises"
import { basename, join } from "node:path"
import { indexOf } from "./apt-repository.ts"
import { cacheDirectory, ensureBase, isDirectory } from "./instance/base.ts"
import { run } from "./run.ts"

const suite = "bookworm"
const wantedByRestore = [
	...["apache2-utils", "certbot", "jq", "nfs-common", "openssl", "redis-tools", "unzip", "wget"],
	...["e2fsprogs", "util-linux"],
]

/**
 * Gives a directory with the packages and their index, and fetches them when it isn't there yet (half a minute, 30 MB,
 * Debian's mirror). Which they are, the real apt works out from what the base has installed.
 */
export async function ensureDebianPackages(packages: readonly string[] = wantedByRestore): Promise<string> {
	const base = await ensureBase()
	const recipe = JSON.stringify({ version: 1, suite, packages, base: basename(base) })
	const digest = createHash("sha256").update(recipe).digest("hex").slice(0, 12)
	const directory = join(cacheDirectory(), `debian-packages-${digest}`)
	if (await isDirectory(directory)) return directory

	const partial = `${directory}.${process.pid}.partial`
	try {
		const apt = join(partial, "apt")
		for (const part of ["lists/partial", "archives/partial"])
			await mkdir(join(apt, part), { recursive: true })
		const key = "/usr/share/keyrings/debian-archive-keyring.gpg"
		await writeFile(
			join(apt, "sources.list"),
			`deb [signed-by=${key}] http://deb.debian.org/debian ${suite} main\n` +
				`deb [signed-by=${key}] http://deb.debian.org/debian-security ${suite}-security main\n`,
		)
		// A copy: apt locks and would write beside it.
		await copyFile(join(base, "var/lib/dpkg/status"), join(apt, "status"))
		const options = [
			`Dir::State=${apt}`,
			`Dir::State::status=${apt}/status`,
			`Dir::Cache=${apt}`,
			`Dir::Etc::sourcelist=${apt}/sources.list`,
			"Dir::Etc::sourceparts=-",
			"Dir::Etc::preferencesparts=-",
			"APT::Sandbox::User=",
			"Debug::NoLocking=true",
		].flatMap((option) => ["-o", option])
		await run("apt-get", [...options, "update"], { timeoutMs: 300_000 })
		const install = ["--yes", "--download-only", "--no-install-recommends", "install", ...packages]
		await run("apt-get", [...options, ...install], { timeoutMs: 600_000 })
		const archives = (await readdir(join(apt, "archives"))).filter((name) => name.endsWith(".deb"))
		for (const name of archives) await rename(join(apt, "archives", name), join(partial, name))
		await rm(apt, { recursive: true })
		await writeFile(join(partial, "Packages"), await indexOf(partial, "./"))
		await rename(partial, directory)
	} catch (error) {
		// Another process may have been faster; its packages are as good as ours.
		if (!(await isDirectory(directory))) throw error
	} finally {
		await rm(partial, { recursive: true, force: true })
	}
	return directory
}
