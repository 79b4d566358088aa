// Fresh servers as a provider hands them over: a real systemd, Docker Engine inside, an empty second disk, a share that
// isn't mounted yet, package repositories that answer, the operator's key, and nothing of ours. What stands in for
// something real says so: a bind mount for NFS, a loop device for the block volume, the tailscale package's programs.
import { mkdir, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { type AptRepository, startAptRepository } from "./apt-repository.ts"
import { ensureDebianPackages } from "./debian-packages.ts"
import { ensureBaseArchive } from "./docker-base.ts"
import { ensureDockerLayer } from "./instance/containers.ts"
import type { Instance } from "./instance/instance.ts"
import type { World } from "./instance/world.ts"
import { poll } from "./poll.ts"
import { tailscalePackage } from "./stand-ins.ts"

/** Where a fresh server finds the share; it mounts it itself: `mount --bind /outside/share /mnt/sfs`. */
export const outsideShare = "/outside/share"
/** A fresh server's second disk, with nothing on it. */
export const scratchDevice = "/dev/vdb"

const gibibyte = 2 ** 30
const baseImages = "/outside/base-images.tar.zst"

export type FreshServerOptions = {
	/** Directory of this machine that every server is offered as the share. */
	share: string
	/** A line for root's `authorized_keys`. */
	authorizedKey: string
}

export type FreshServers = {
	/** The repositories: `packages.tailscale.repository` and its `keySha256` come from here. */
	apt: AptRepository
	/** Makes a server and waits until it lets root in and its Docker answers. Several at once are fine. */
	freshServer(name: string, options?: { scratchBytes?: number }): Promise<Instance>
	/** Gives the engine of a server the images that Dockerfiles begin with, as a registry would. */
	loadBaseImages(server: Instance): Promise<void>
	/** Lines of an environment's configuration: how these servers' share, disk and packages are found. */
	configuration: string
	[Symbol.asyncDispose](): Promise<void>
}

/**
 * Opens what fresh servers need outside of them. The servers are removed with their world, which has to be disposed of
 * first. The first time on a machine this takes some minutes and Debian's mirror; see the caches it uses.
 */
export async function openFreshServers(
	world: World,
	{ share, authorizedKey }: FreshServerOptions,
): Promise<FreshServers> {
	const [debian, images] = [
		await ensureDebianPackages(),
		await ensureBaseArchive(),
		await ensureDockerLayer(),
	]
	await mkdir(share, { recursive: true })
	const apt = await startAptRepository(world.address, [], { debian, tailscale: tailscalePackage })
	return {
		apt,
		configuration: `    share: { mount: sudo mount --bind ${outsideShare} /mnt/sfs, filesystem: bind }
    scratch: { device: ${scratchDevice}, path: /mnt/scratch }
    packages: { tailscale: { repository: "${apt.tailscale}", keySha256: ${apt.keySha256} } }
`,
		freshServer: async (name, { scratchBytes = 2 * gibibyte } = {}) => {
			const server = await world.createInstance({
				name,
				hostname: name,
				authorizedKey,
				docker: true,
				disks: [{ name: "vdb", sizeBytes: scratchBytes }],
				binds: [
					{ from: share, to: outsideShare },
					{ from: images, to: baseImages, readOnly: true },
				],
				prepare: async (root) => {
					await writeFile(join(root, "etc/apt/sources.list"), apt.sources)
					// As in Debian's own container images: a power cut of the outer machine is not what is tried here.
					await writeFile(join(root, "etc/dpkg/dpkg.cfg.d/force-unsafe-io"), "force-unsafe-io\n")
				},
			})
			await Promise.all([server.waitForSsh(), waitForDocker(server)])
			return server
		},
		loadBaseImages: async (server) => {
			await server.run(["docker", "load", "--quiet", "--input", baseImages], { timeoutMs: 120_000 })
		},
		[Symbol.asyncDispose]: () => apt[Symbol.asyncDispose](),
	}
}

/** Resolves once the engine in a server answers, after its creation or a reboot. */
export async function waitForDocker(server: Instance): Promise<void> {
	await poll(
		async () => {
			const { exitCode } = await server.run(["docker", "version"], { allowedExitCodes: "any" })
			return exitCode === 0
		},
		{ what: `Docker on ${server.name}`, deadlineMs: 60_000, intervalMs: 50 },
	)
}
