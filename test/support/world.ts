// A small world in temporary directories: a server that is a directory, a share that is one, and a git remote that is
// one. Everything else is the real thing. What needs a real server stands in the e2e tests.
import { execFileSync } from "node:child_process"
import { randomBytes } from "node:crypto"
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { planBackup } from "../../src/commands/backup.ts"
import { planRestore, type RestoreOptions } from "../../src/commands/restore.ts"
import { probeSources, type SourceName } from "../../src/lib/artifacts/source.ts"
import type { Environment } from "../../src/lib/config/environment.ts"
import { localHost } from "../../src/lib/host/local.ts"
import type { Event } from "../../src/lib/plan/events.ts"
import { runPlan } from "../../src/lib/plan/run.ts"
import type { StepContext } from "../../src/lib/steps/context.ts"
import { directoryStore } from "../../src/lib/storage/directory.ts"
import type { ObjectStore } from "../../src/lib/storage/object-store.ts"

export const packageRoot = fileURLToPath(new URL("../../", import.meta.url))

export type Ran = {
	exitCode: number
	events: Event[]
	outcome: (step: string) => string | undefined
	notes: string[]
}

export type World = Awaited<ReturnType<typeof createWorld>>

/** @param environmentName what the sidecars will say; `sandbox` without it */
export async function createWorld({ environmentName = "sandbox" } = {}) {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-world-"))
	const share = join(directory, "share")
	const second = join(directory, "second")
	const remote = join(directory, "project.git")
	mkdirSync(share)
	mkdirSync(second)
	makeRemote(remote)

	let clock = new Date("2026-11-21T06:00:00Z")
	const now = () => clock
	const environment: Environment = {
		name: environmentName,
		domain: "workshop.example.test",
		hosts: [
			{
				name: "app-1",
				role: "app",
				hostKeys: [],
				connection: "directory",
				directory: join(directory, "server"),
			},
		],
		git: {
			project: { remote, branch: "main", path: "/home/dev/project" },
			scripts: { remote, branch: "main", path: "/home/dev/scripts" },
		},
		user: "dev",
		directories: { local: "/root/comfyume-backups" },
		allowStandIns: true,
		allowPlainHttp: false,
		restore: { refuseOlderThanHours: 72 },
	}
	const stores: Record<string, () => ObjectStore> = {
		local: () =>
			directoryStore({ name: "local", directory: join(directory, "server/root/comfyume-backups") }),
		share: () => directoryStore({ name: "share", directory: share }),
		// The second place stands where R2 will: what matters to the chain is that it is another store.
		r2: () => directoryStore({ name: "r2", directory: second }),
	}

	async function context(server: string, sourceNames: readonly SourceName[]): Promise<StepContext> {
		const [hostConfiguration] = environment.hosts
		if (hostConfiguration === undefined) throw new Error("the world has a host")
		return {
			environment,
			hostConfiguration,
			host: localHost({ name: "app-1", root: server, environment: process.env }),
			sources: await probeSources(
				sourceNames.flatMap((name) => {
					const store = stores[name]?.()
					return store === undefined ? [] : [{ name, store }]
				}),
			),
			gitToken: undefined,
			comfyume: "0.0.0-test",
			now,
			randomId: () => randomBytes(4).toString("hex"),
			signal: new AbortController().signal,
			summary: new Map(),
		}
	}

	async function run(
		make: (given: StepContext) => ReturnType<typeof planBackup>,
		given: StepContext,
		dryRun: boolean,
	): Promise<Ran> {
		const events: Event[] = []
		const { exitCode, outcomes } = await runPlan(await make(given), {
			dryRun,
			now,
			signal: given.signal,
			reporter: { event: (event) => void events.push(event), close: async () => {} },
		})
		return {
			exitCode,
			events,
			outcome: (step) => outcomes.get(step),
			notes: events.flatMap((event) => (event.event === "note" ? [event.text] : [])),
		}
	}

	return {
		directory,
		share,
		/** Where R2 would be. */
		second,
		remote,
		environment,
		/** Moves the clock on. */
		later: (minutes: number) => {
			clock = new Date(clock.getTime() + minutes * 60_000)
		},
		/** A server with files as a workshop's server has them, in a directory of its own. */
		fillServer: (name = "server") => fillServer(join(directory, name), remote),
		/** A machine fresh from the provider. */
		freshServer: (name: string) => freshServer(join(directory, name)),
		context,
		backup: async (
			server: string,
			options: { only?: string[]; skip?: string[]; dryRun?: boolean; to?: SourceName[] } = {},
		) =>
			run(
				(given) => planBackup(given, packageRoot, { only: options.only ?? [], skip: options.skip ?? [] }),
				await context(server, options.to ?? ["share", "r2"]),
				options.dryRun ?? false,
			),
		restore: async (
			server: string,
			options: Partial<RestoreOptions> & { dryRun?: boolean; sources?: SourceName[] } = {},
		) =>
			run(
				(given) =>
					planRestore(
						given,
						packageRoot,
						{ only: [], skip: [], ...options },
						{ state: "unknown", because: "not asked" },
					),
				await context(server, options.sources ?? ["share", "r2"]),
				options.dryRun ?? false,
			),
		/** An independent look at a tree: what `find` and `sha256sum` say of everything below these paths. */
		inventory: (server: string, paths: readonly string[]) => inventory(server, paths),
		[Symbol.dispose]: () => rmSync(directory, { recursive: true, force: true }),
	}
}

function git(directory: string, ...args: string[]): string {
	return execFileSync("git", ["-C", directory, ...args], {
		encoding: "utf8",
		stdio: ["ignore", "pipe", "pipe"],
	})
}

function makeRemote(remote: string): void {
	const work = `${remote}.work`
	execFileSync("git", ["init", "--quiet", "--initial-branch=main", work])
	for (const [key, value] of [
		["user.name", "A Developer"],
		["user.email", "developer@example.test"],
	] as const)
		git(work, "config", key, value)
	writeFileSync(join(work, "docker-compose.yml"), "services: {}\n")
	writeFileSync(join(work, ".gitignore"), ".env\ndata/\n")
	git(work, "add", "-A")
	git(work, "commit", "--quiet", "-m", "The first")
	execFileSync("git", ["clone", "--quiet", "--bare", work, remote])
	git(work, "remote", "add", "origin", remote)
}

/** Adds a commit to the remote and returns its id. */
export function pushCommit(remote: string, text: string): string {
	const work = `${remote}.work`
	writeFileSync(join(work, "notes.txt"), text)
	git(work, "add", "-A")
	git(work, "commit", "--quiet", "-m", text)
	git(work, "push", "--quiet", "origin", "main")
	return git(work, "rev-parse", "HEAD").trim()
}

function place(server: string, path: string, content: string | Buffer, mode = 0o644): void {
	const file = join(server, path)
	mkdirSync(dirname(file), { recursive: true })
	writeFileSync(file, content)
	chmodSync(file, mode)
}

function standInPrograms(server: string): void {
	place(server, "usr/local/bin/sshd", "#!/bin/sh\nexit 0\n", 0o755)
	place(server, "usr/local/bin/systemctl", "#!/bin/sh\nexit 3\n", 0o755)
}

function fillServer(server: string, remote: string): string {
	standInPrograms(server)
	for (const type of ["ed25519", "rsa"]) {
		const key = join(server, `etc/ssh/ssh_host_${type}_key`)
		mkdirSync(dirname(key), { recursive: true })
		execFileSync("ssh-keygen", ["-q", "-t", type, "-N", "", "-C", "root@app-1", "-f", key])
	}
	place(server, "etc/ssh/sshd_config", "Port 22\n")
	place(server, "etc/ufw/ufw.conf", "ENABLED=yes\nLOGLEVEL=low\n")
	place(
		server,
		"etc/ufw/user.rules",
		`*filter\n${"-A ufw-user-input -p tcp --dport 443 -j ACCEPT\n".repeat(5)}COMMIT\n`,
		0o640,
	)
	place(server, "etc/default/ufw", "IPV6=yes\n")
	place(server, "etc/fail2ban/fail2ban.conf", `[Definition]\n${"loglevel = INFO\n".repeat(20)}`)
	place(server, "etc/fail2ban/jail.local", "[sshd]\nenabled = true\nmaxretry = 3\n")
	const home = join(server, "home/dev")
	mkdirSync(home, { recursive: true })
	for (const name of ["project", "scripts"])
		execFileSync("git", ["clone", "--quiet", remote, join(home, name)])
	place(
		server,
		"home/dev/project/.env",
		"DOMAIN=workshop.example.test\nREDIS_PASSWORD=made-up-value\n",
		0o600,
	)
	place(server, "home/dev/.zshrc", "export EDITOR=vi\n".repeat(10))
	place(server, "home/dev/notes with spaces.txt", "an operator's notes\n")
	place(server, "home/dev/.cache/big", "never backed up")
	symlinkSync("notes with spaces.txt", join(home, "link"))
	return server
}

function freshServer(server: string): string {
	standInPrograms(server)
	place(server, "etc/ssh/ssh_host_ed25519_key", "a fresh machine's own key\n", 0o600)
	place(server, "etc/ssh/ssh_host_ecdsa_key", "and one of a kind the old one didn't have\n", 0o600)
	place(server, "etc/ssh/sshd_config", "Port 22\n")
	place(server, "etc/fail2ban/jail.d/defaults.conf", "from the package\n")
	mkdirSync(join(server, "root"), { recursive: true })
	return server
}

function inventory(server: string, paths: readonly string[]): string {
	const found = execFileSync(
		"find",
		[
			...paths,
			"(",
			"-name",
			".git",
			"-o",
			"-name",
			".cache",
			"-o",
			"-name",
			".comfyume",
			")",
			"-prune",
			"-o",
			"-printf",
			"%y %m %l %p\\n",
		],
		{ cwd: server, encoding: "utf8" },
	)
	const files = found
		.split("\n")
		.filter((line) => line.startsWith("f "))
		.map((line) => line.split(" ").slice(3).join(" "))
		.sort()
	const sums = files.map((file) => execFileSync("sha256sum", ["--", file], { cwd: server, encoding: "utf8" }))
	return [...found.trim().split("\n").sort(), ...sums].join("\n")
}

/** Flips one bit in the middle of a file, keeping its length. */
export function flipBit(file: string): void {
	const bytes = readFileSync(file)
	const middle = bytes.length >> 1
	bytes[middle] = (bytes[middle] ?? 0) ^ 1
	writeFileSync(file, bytes)
}
