// A workshop on real instances: a running server under systemd and sshd, the share bound into it, a strict S3 server,
// a private git remote, and an operator's laptop, from which everything is done. What stands in for something real says
// so: the bind mount for NFS, the S3 server for R2, the tailscale program for Tailscale's.
import { execFileSync } from "node:child_process"
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { makeAgeKey } from "./age.ts"
import { startGitServer } from "./git-server.ts"
import type { Instance } from "./instance/instance.ts"
import { createWorld } from "./instance/world.ts"
import { type Ran, run } from "./run.ts"
import { startS3Server } from "./s3-server/index.ts"
import { makeRemote } from "./server-files.ts"
import { installTailscale } from "./stand-ins.ts"

const repository = fileURLToPath(new URL("../../", import.meta.url))

const s3Credentials = { accessKeyId: "made-up-key-id", secretAccessKey: "made-up-secret-access-key" }
const gitToken = "made-up-git-token"
/** Everything that a restore has to bring back, below `/`. */
const restoredPaths = [
	"etc/ssh",
	"etc/ufw",
	"etc/default/ufw",
	"etc/fail2ban",
	"home/dev",
	"var/lib/tailscale",
]
const environmentName = "rehearsal"

export type Workshop = Awaited<ReturnType<typeof openWorkshop>>

/** Opens the world, without an instance in it. Needs root and the packages that `npm test` installs. */
export async function openWorkshop() {
	const world = await createWorld()
	const directory = await mkdtemp(join(tmpdir(), "comfyume-workshop-"))
	const share = join(directory, "share")
	const laptop = join(directory, "laptop")
	const repositories = join(directory, "repositories")
	for (const made of [share, laptop, repositories]) await mkdir(made)
	makeRemote(join(repositories, "project.git"))
	const s3 = await startS3Server({
		buckets: ["cache-backups"],
		credentials: [s3Credentials],
		address: world.address,
	})
	const git = await startGitServer({ repositories, token: gitToken, address: world.address })
	const key = join(laptop, "id_ed25519")
	await run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-C", "operator", "-f", key])
	const authorizedKey = await readFile(`${key}.pub`, "utf8")
	const secrets = [
		`R2_ACCESS_KEY_ID=${s3Credentials.accessKeyId}`,
		`R2_SECRET_ACCESS_KEY=${s3Credentials.secretAccessKey}`,
		`GH_TOKEN=${gitToken}`,
		"",
	].join("\n")
	// The key that opens what the server encrypts is the operator's, and never the server's.
	const age = await makeAgeKey()
	const withKey = `${secrets}AGE_IDENTITY=${age.identity}\n`
	await writeFile(join(laptop, "secrets.env"), withKey, { mode: 0o600 })

	/** comfyume.yaml for a server at this address, with the identity that it has or will have again. */
	const configurationFor = (address: string, identity: Identity | undefined) => `version: 1
environments:
  ${environmentName}:
    domain: rehearsal.example.test
    allowStandIns: true
    allowPlainHttp: true
    hosts:
      - name: app-1
        role: app
        address: ${address}
        keyFiles: [${key}]
        hostKeys: ${JSON.stringify(identity?.hostKeys ?? [])}
        ${identity === undefined ? "" : `tailscaleAddress: ${identity.tailscaleAddress}`}
    backups: { recipients: [${age.recipient}] }
    share: { mount: sudo mount --bind /outside/share /mnt/sfs, filesystem: bind }
    objectStore:
      provider: s3
      buckets: { cache: { bucket: cache-backups, endpoint: "${s3.endpoint}" } }
    git:
      project: { remote: "${git.url}/project.git", branch: main, path: /home/dev/project }
      scripts: { remote: "${git.url}/project.git", branch: main, path: /home/dev/scripts }
${additions.configuration}`

	/** comfyume on the laptop, as an operator types it. */
	const comfyume = (...argv: string[]): Promise<Ran> =>
		run(
			process.execPath,
			[join(repository, "bin/comfyume.js"), ...argv, "--config", join(laptop, "comfyume.yaml")],
			{
				workingDirectory: laptop,
				environment: { PATH: process.env.PATH, HOME: laptop, TERM: "dumb" },
				allowedExitCodes: "any",
				timeoutMs: 240_000,
			},
		)

	// What a test adds to the environment, and to the secrets.
	const additions = { configuration: "", secrets: "" }
	const configure = (text: string) => writeFile(join(laptop, "comfyume.yaml"), text)

	return {
		world,
		share,
		s3,
		git,
		laptop,
		ageIdentity: age.identity,
		environmentName,
		comfyume,
		/** A machine fresh from the provider: reachable with the operator's key, and nothing of ours on it. */
		freshInstance: async (name: string): Promise<Instance> => {
			const instance = await world.createInstance({
				name,
				hostname: name,
				authorizedKey,
				binds: [{ from: share, to: "/mnt/sfs" }],
				prepare: installTailscale,
			})
			await instance.waitForSsh()
			return instance
		},
		/** Writes the laptop's configuration so that the environment's server is this instance. */
		pointAt: (instance: Instance, identity?: Identity) =>
			configure(configurationFor(instance.address, identity)),
		/** What an operator sees on the console of a new machine. */
		consoleFingerprint: async (instance: Instance): Promise<string> => {
			const fingerprint = (await instance.hostKeyFingerprints()).get("ssh-ed25519")
			if (fingerprint === undefined) throw new Error(`${instance.name} has no ed25519 host key`)
			return fingerprint
		},
		/** Fills an instance with what a running server has, and gives the identity that must come back. */
		makeServer: (instance: Instance) => makeServer(instance, `${git.url}/project.git`, authorizedKey),
		/** As an installed server: its own configuration and secrets, and it knows its environment. */
		installConfiguration: async (instance: Instance, identity: Identity) => {
			const etc = join(instance.root, "etc/comfyume")
			await mkdir(etc, { recursive: true })
			await writeFile(
				join(etc, "comfyume.yaml"),
				configurationFor(instance.address, identity).replace(/keyFiles: .*/, ""),
			)
			await writeFile(join(etc, "secrets.env"), secrets + additions.secrets, { mode: 0o600 })
			await writeFile(join(etc, "environment"), `${environmentName}\n`)
		},
		/** Adds lines to the environment and to the secrets, for configurations that are written from now on. */
		add: async (configuration: string, moreSecrets: string): Promise<void> => {
			additions.configuration += configuration
			additions.secrets += moreSecrets
			await writeFile(join(laptop, "secrets.env"), secrets + additions.secrets, { mode: 0o600 })
		},
		/** Moves everything on the share aside, and gives what moves it back. */
		emptyShare: async (): Promise<() => Promise<void>> => {
			await run("mv", [join(share, "cache"), join(directory, "cache-aside")])
			return async () => {
				await run("rm", ["-rf", join(share, "cache")])
				await run("mv", [join(directory, "cache-aside"), join(share, "cache")])
			}
		},
		[Symbol.asyncDispose]: async () => {
			await world[Symbol.asyncDispose]()
			await git[Symbol.asyncDispose]()
			await s3.close()
			await rm(directory, { recursive: true, force: true })
		},
	}
}

export type Identity = { hostKeys: readonly string[]; tailscaleAddress: string }

async function makeServer(instance: Instance, remote: string, authorizedKey: string): Promise<Identity> {
	const script = `set -e
useradd --create-home --shell /bin/bash dev
install -d -m 700 -o dev -g dev /home/dev/.ssh
printf '%s' "$1" >/home/dev/.ssh/authorized_keys
chown dev:dev /home/dev/.ssh/authorized_keys; chmod 600 /home/dev/.ssh/authorized_keys
printf 'an operator was here\\n' >'/home/dev/notes with spaces.txt'
install -d -m 2750 -o dev -g dev /home/dev/shared
ln -s '../notes with spaces.txt' /home/dev/shared/link
head -c 300000 /dev/urandom >/home/dev/large.bin
printf '#!/bin/sh\\nexit 0\\n' >/home/dev/tool; chmod 755 /home/dev/tool
chown -R dev:dev /home/dev
printf '[sshd]\\nenabled = true\\nbackend = systemd\\nmaxretry = 3\\nbantime = 3600\\n' >/etc/fail2ban/jail.local
ufw allow 80/tcp >/dev/null; ufw allow 443/tcp >/dev/null; ufw limit 22/tcp >/dev/null
for name in project scripts; do
	runuser -u dev -- git -c "http.extraHeader=Authorization: Basic $2" clone --quiet "$3" "/home/dev/$name"
done
printf 'DOMAIN=rehearsal.example.test\\nREDIS_PASSWORD=made-up-value-with-$-in-it\\n' >/home/dev/project/.env
chown dev:dev /home/dev/project/.env; chmod 600 /home/dev/project/.env
tailscale up --ssh=false
`
	const authorization = Buffer.from(`x-access-token:${gitToken}`).toString("base64")
	await instance.run(["sh", "-c", script, "sh", authorizedKey, authorization, remote])
	const { stdout } = await instance.run(["tailscale", "ip", "-4"])
	return {
		hostKeys: [...(await instance.hostKeyFingerprints()).values()],
		tailscaleAddress: stdout.trim(),
	}
}

/**
 * An independent look at what a server holds: type, mode, owner and target by `find`, content by `sha256sum`. Taken on
 * the instance's own disk, without comfyume.
 */
export function inventoryOf(instance: Instance): string {
	const script = `cd "$1" && shift
for path in "$@"; do
	find "$path" \\( -name .git -o -name .comfyume -o -name '*.log1.txt' \\) -prune -o -printf '%y %m %U:%G %l %p\\n'
done | sort
for path in "$@"; do
	find "$path" \\( -name .git -o -name .comfyume -o -name '*.log1.txt' -o -name tailscaled.state \\) -prune -o -type f -print0
done | sort -z | xargs -0 sha256sum`
	return execFileSync("sh", ["-c", script, "sh", instance.root, ...restoredPaths], {
		encoding: "utf8",
		maxBuffer: 1e8,
	})
}

/** Flips one bit in the middle of every archive below a directory. */
export async function damageAll(archives: readonly string[]): Promise<void> {
	for (const archive of archives) {
		const bytes = await readFile(archive)
		const middle = bytes.length >> 1
		bytes[middle] = (bytes[middle] ?? 0) ^ 1
		await writeFile(archive, bytes)
	}
}
