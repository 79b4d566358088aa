// A Docker Engine of the tests' own: Debian's 26.1 beside the system (scripts/lib/test-parts.js), never the machine's.
// Images stay between runs, below the test cache; containers, networks and volumes don't.
import { spawn } from "node:child_process"
import { chmodSync, existsSync, mkdirSync, openSync, readFileSync, rmSync, symlinkSync } from "node:fs"
import { join } from "node:path"
import { cacheDirectory } from "./instance/base.ts"
import { holdLock, processIsAlive } from "./instance/owner.ts"
import { composeProgram, dockerPrograms } from "./parts.ts"
import { poll } from "./poll.ts"
import { type Ran, type RunOptions, run } from "./run.ts"

export type Docker = Awaited<ReturnType<typeof startDocker>>

/**
 * Starts the engine; one at a time on a machine, so another test file's may have to end first. Its networks are the
 * machine's: what is published on 127.0.0.1 is found there.
 */
export async function startDocker() {
	// The subject of a whole test file may run before ours.
	const lock = await holdLock("docker", 550_000)
	const directory = join(cacheDirectory(), "docker")
	const path = (...parts: string[]) => join(directory, ...parts)
	const environment = prepare(directory)
	await endStale(path("run/docker.pid"), directory)
	rmSync(path("run"), { recursive: true, force: true })
	mkdirSync(path("run"), { recursive: true })
	const before = await forwardPolicy()

	const log = openSync(path("docker.log"), "w")
	const daemon = spawn(
		join(dockerPrograms(), "dockerd"),
		[
			...["--data-root", path("data"), "--exec-root", path("run/exec"), "--pidfile", path("run/docker.pid")],
			...["--host", environment.DOCKER_HOST, "--group", "root"],
			...["--init-path", join(dockerPrograms(), "tini-static")],
			...["--userland-proxy-path", join(dockerPrograms(), "docker-proxy")],
		],
		{ env: environment, stdio: ["ignore", log, log] },
	)
	let failure: Error | undefined
	const ended = new Promise<void>((resolve) => {
		daemon.once("exit", () => resolve())
		daemon.once("error", (error) => {
			failure = error
			resolve()
		})
	})

	/** The docker client. */
	const docker = (...args: (string | RunOptions)[]): Promise<Ran> => {
		const options = args.filter((arg) => typeof arg !== "string")
		return run(
			join(dockerPrograms(), "docker"),
			args.filter((arg) => typeof arg === "string"),
			{ timeoutMs: 300_000, environment, ...options[0] },
		)
	}
	const lines = async (...args: string[]) => (await docker(...args)).stdout.split("\n").filter(Boolean)
	/** Removes every container, network and volume: of this run, and of one that was killed. */
	const removeEverything = async () => {
		const containers = await lines("ps", "--all", "--quiet")
		if (containers.length > 0) await docker("rm", "--force", "--volumes", ...containers)
		await docker("network", "prune", "--force")
		await docker("volume", "prune", "--all", "--force")
	}
	const stop = async () => {
		daemon.kill("SIGTERM")
		await ended
		await restoreForwarding(before)
		await lock[Symbol.asyncDispose]()
	}

	try {
		await poll(
			async () => {
				if (failure !== undefined) throw failure
				if (daemon.exitCode !== null || daemon.signalCode !== null)
					throw new Error(`dockerd ended:\n${readFileSync(path("docker.log"), "utf8").slice(-2000)}`)
				const answer = await docker("version", { allowedExitCodes: "any" })
				return answer.exitCode === 0
			},
			{ what: "the Docker Engine answers", deadlineMs: 60_000, intervalMs: 100 },
		)
		await removeEverything()
	} catch (error) {
		await stop()
		throw error
	}

	return {
		docker,
		lines,
		/** `docker compose`. */
		compose: (...args: (string | RunOptions)[]) => docker("compose", ...args),
		/** For programs that call `docker` by themselves: PATH, DOCKER_HOST and DOCKER_CONFIG. */
		environment,
		/** The machine's address as containers see it, on Docker's own bridge. */
		hostAddress: async () =>
			(
				await docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
			).stdout.trim(),
		removeEverything,
		[Symbol.asyncDispose]: async () => {
			try {
				await removeEverything()
				// What was built over and over would fill the disk.
				await docker("image", "prune", "--force")
				await docker("builder", "prune", "--force", "--keep-storage", "2GB")
			} finally {
				await stop()
			}
		},
	}
}

/** Makes the directories and gives the environment that finds this engine and no other. */
function prepare(directory: string) {
	mkdirSync(join(directory, "data"), { recursive: true })
	const plugins = join(directory, "config/cli-plugins")
	mkdirSync(plugins, { recursive: true })
	for (const plugin of [composeProgram(), join(dockerPrograms(), "docker-buildx")]) {
		const place = join(plugins, plugin.slice(plugin.lastIndexOf("/") + 1))
		if (!existsSync(place)) symlinkSync(plugin, place)
	}
	chmodSync(directory, 0o711)
	return {
		...process.env,
		PATH: `${dockerPrograms()}:${process.env["PATH"] ?? ""}:/usr/sbin:/usr/bin:/sbin:/bin`,
		// runc's own library, where the machine has none.
		LD_LIBRARY_PATH: dockerPrograms(),
		DOCKER_HOST: `unix://${join(directory, "run/docker.sock")}`,
		DOCKER_CONFIG: join(directory, "config"),
	}
}

/** Ends the engine of a test that was killed. */
async function endStale(pidFile: string, directory: string): Promise<void> {
	if (!existsSync(pidFile)) return
	const pid = Number(readFileSync(pidFile, "utf8"))
	const commandLine = await readCommandLine(pid)
	if (!commandLine.includes("dockerd") || !commandLine.includes(directory)) return
	process.kill(pid, "SIGTERM")
	await poll(async () => !(await processIsAlive(pid)), {
		what: "the Docker Engine of an earlier test ends",
		deadlineMs: 60_000,
	})
}

async function readCommandLine(pid: number): Promise<string> {
	try {
		return readFileSync(`/proc/${pid}/cmdline`, "utf8")
	} catch {
		return ""
	}
}

const iptables = (...args: string[]) => run("iptables", ["--wait", ...args])

/** What the machine did with packets that pass through it. dockerd sets it to DROP. */
async function forwardPolicy(): Promise<string> {
	const { stdout } = await iptables("--list-rules", "FORWARD")
	return /^-P FORWARD (\w+)$/m.exec(stdout)?.[1] ?? "ACCEPT"
}

/** Takes away what dockerd leaves behind: its policy, its chains, its bridge. */
async function restoreForwarding(policy: string): Promise<void> {
	await iptables("--policy", "FORWARD", policy)
	for (const table of ["filter", "nat"]) {
		const rules = (await iptables("--table", table, "--list-rules")).stdout.split("\n")
		const chains = rules.flatMap((rule) => /^-N (DOCKER\S*)$/.exec(rule)?.[1] ?? [])
		for (const rule of rules)
			if (rule.startsWith("-A") && /DOCKER|docker0|172\.17\./.test(rule))
				await iptables("--table", table, ...rule.replace("-A", "-D").replaceAll('"', "").split(" "))
		for (const chain of chains) await iptables("--table", table, "--delete-chain", chain)
	}
	await run("ip", ["link", "delete", "docker0"], { allowedExitCodes: "any" })
}
