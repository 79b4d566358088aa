// This machine as a host, or a directory that stands in for a machine. The only place that starts local programs.
import { randomUUID } from "node:crypto"
import { createReadStream } from "node:fs"
import { chmod, mkdir, open, readFile, rename, rm, stat } from "node:fs/promises"
import { delimiter, dirname, join } from "node:path"
import { execa } from "execa"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { type Command, describe } from "./command.ts"
import { commandFailure, longestOutputBytes, notInstalled } from "./failures.ts"
import type { ExecuteOptions, Finished, Host, TransferOptions, WriteOptions } from "./host.ts"
import { syncPath } from "./sync.ts"

export { lastLines } from "./failures.ts"

/** Direct changes to the disk, for work that would be slow or not atomic through commands. Paths as on the host. */
export type LocalFiles = {
	/** With its parents; what exists already keeps its mode. */
	makeDirectory(path: string, mode: number): Promise<void>
	/** Permission bits, also those that the umask would take away. */
	setMode(path: string, mode: number): Promise<void>
	/** Atomic; replaces a file or an empty directory. */
	rename(from: string, to: string): Promise<void>
	/** A file or a whole tree; nothing happens when there is none. */
	remove(path: string): Promise<void>
}

/** This machine. Besides what every host can, its disk is at hand. */
export interface LocalHost extends Host {
	/** `/`, or the directory that stands in for a machine. */
	readonly root: string
	/** True for a directory: owners are not set there and not compared. */
	readonly standIn: boolean
	/** What the programs find in their environment. */
	readonly environment: Readonly<Record<string, string>>
	/** Where a path of the host lies on this machine. */
	path(hostPath: string): string
	readonly files: LocalFiles
}

export type LocalHostOptions = {
	name: string
	/** A directory that stands in for a machine. Its own `usr/local/bin` comes first in PATH. */
	root?: string
	/** Kills what is running when it is aborted. */
	signal?: AbortSignal
	/** What the programs find in their environment; the caller decides what they need of its own. */
	environment: Readonly<Record<string, string | undefined>>
}

/** Opens this machine as a host. Holds nothing open. */
export function localHost({ name, root = "/", signal, environment }: LocalHostOptions): LocalHost {
	const standIn = root !== "/"
	const path = (hostPath: string) => (standIn ? join(root, hostPath) : hostPath)
	const baseEnvironment = programEnvironment(environment, standIn ? root : undefined)

	const run = async (command: Command, options: ExecuteOptions = {}): Promise<Finished> => {
		const { result, stopped } = await start(command, options)
		const finished = {
			exitCode: result.exitCode ?? -1,
			stdout: options.onStdout === undefined ? String(result.stdout ?? "") : "",
			stderr: String(result.stderr ?? ""),
		}
		if (stopped !== undefined) throw stopped
		const { exitCode } = result
		if (exitCode !== undefined && [0, ...(options.allowedExitCodes ?? [])].includes(exitCode)) return finished
		throw failure(command, name, finished, result)
	}

	// One listener for all: Node takes many for a leak, and says so to the operator.
	const running = new Set<number | undefined>()
	/** When we don't wait any more, nothing can stay: not even what won't be asked. */
	const onExit = () => {
		for (const pid of running) signalGroup(pid, "SIGKILL")
	}

	const start = async (command: Command, options: ExecuteOptions) => {
		const { onStdout, onStderr, stdin, signal: runSignal = signal } = options
		if (runSignal?.aborted === true) throw stoppedBy(command, runSignal)
		const subprocess = execa(command.program, [...command.args], {
			reject: false,
			extendEnv: false,
			// A process group of its own, so that what the program started ends with it.
			detached: true,
			env: { ...baseEnvironment, ...command.environment, ...command.secretEnvironment },
			...(command.workingDirectory === undefined ? {} : { cwd: path(command.workingDirectory) }),
			...(stdin === undefined ? { stdin: "ignore" as const } : { input: stdin }),
			maxBuffer: longestOutputBytes,
			stripFinalNewline: false,
			...(onStdout === undefined ? {} : { buffer: { stdout: false, stderr: true } }),
		})
		let stopped: OperatorError | undefined
		const stopping = Promise.withResolvers<void>()
		const end = (because: OperatorError) => {
			stopped ??= because
			stopping.resolve()
			killGroup(subprocess.pid)
		}
		const onAbort = () => end(stoppedBy(command, runSignal))
		runSignal?.addEventListener("abort", onAbort, { once: true })
		const { timeoutMs } = command
		const timer = timeoutMs === undefined ? undefined : setTimeout(() => end(late(command, name)), timeoutMs)
		if (running.size === 0) process.on("exit", onExit)
		running.add(subprocess.pid)
		if (onStderr !== undefined) subprocess.stderr?.on("data", onStderr)
		try {
			if (onStdout !== undefined && subprocess.stdout !== null)
				// Whoever takes the output may stand still; the end of the program must not wait for that.
				await Promise.race([handOver(subprocess.stdout, onStdout), stopping.promise])
			// Output that nobody takes any more would keep execa waiting.
			if (stopped !== undefined) subprocess.stdout?.destroy()
			return { result: await subprocess, stopped }
		} catch (error) {
			killGroup(subprocess.pid)
			await subprocess
			throw stopped ?? error
		} finally {
			clearTimeout(timer)
			running.delete(subprocess.pid)
			if (running.size === 0) process.off("exit", onExit)
			runSignal?.removeEventListener("abort", onAbort)
		}
	}

	const files: LocalFiles = {
		makeDirectory: (at, mode) => naming(`making directory ${at}`, mkdir(path(at), { recursive: true, mode })),
		setMode: (at, mode) => naming(`setting the mode of ${at}`, chmod(path(at), mode)),
		rename: (from, to) => naming(`renaming ${from} to ${to}`, rename(path(from), path(to))),
		remove: (at) => naming(`removing ${at}`, rm(path(at), { recursive: true, force: true })),
	}

	return {
		name,
		place: standIn ? `stand-in: the directory ${root}` : "this machine",
		root,
		standIn,
		environment: baseEnvironment,
		path,
		files,
		test: async (command) => {
			const { result, stopped } = await start(command, {})
			if (stopped !== undefined) throw stopped
			return result.exitCode === 0
		},
		capture: run,
		execute: run,
		read: async (file) => {
			try {
				const { size } = await stat(path(file))
				if (size > longestOutputBytes) throw new OperatorError(`${file} is larger than 64 MiB`)
				return await readFile(path(file))
			} catch (error) {
				if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return undefined
				throw systemError(error, `reading ${file}`)
			}
		},
		write: (file, content, options) => placeWhole(file, options, (handle) => handle.writeFile(content)),
		put: async (localFile, to, options) => {
			await copyWhole(localFile, path(to), to, options)
		},
		get: async (from, localFile, options) => {
			await copyWhole(path(from), localFile, from, options)
		},
		async [Symbol.asyncDispose]() {},
	}

	async function placeWhole(
		file: string,
		{ mode, owner }: WriteOptions,
		fill: (handle: Awaited<ReturnType<typeof open>>) => Promise<void>,
	): Promise<void> {
		const final = path(file)
		const partial = `${final}.${randomUUID().slice(0, 8)}.partial`
		try {
			const handle = await open(partial, "wx", mode & 0o600)
			try {
				if (owner !== undefined && !standIn) await run({ program: "chown", args: ["--", owner, partial] })
				// After chown, which takes setuid bits away; `open` honours the umask, so the mode is set here.
				await handle.chmod(mode)
				await fill(handle)
				await handle.sync()
			} finally {
				await handle.close()
			}
			await rename(partial, final)
			await syncPath(dirname(final))
		} catch (error) {
			await rm(partial, { force: true })
			throw systemError(error, `writing ${file}`)
		}
	}
}

/** A host that is not this machine is never local: what only works with the disk at hand says so early. */
export function isLocal(host: Host): host is LocalHost {
	return "files" in host
}

async function copyWhole(
	from: string,
	to: string,
	shown: string,
	{ mode, onProgress }: TransferOptions,
): Promise<void> {
	const partial = `${to}.${randomUUID().slice(0, 8)}.partial`
	try {
		// Not `copyFile`: it gives the copy the source's mode while it is being filled.
		const handle = await open(partial, "wx", mode)
		try {
			await handle.chmod(mode)
			await handle.writeFile(createReadStream(from, { highWaterMark: 1024 * 1024 }))
			await handle.sync()
			const copied = (await handle.stat()).size
			if (copied !== (await stat(from)).size)
				throw new OperatorError(`copying ${shown}: it changed while it was copied`)
			onProgress?.(copied)
		} finally {
			await handle.close()
		}
		await rename(partial, to)
		await syncPath(dirname(to))
	} catch (error) {
		await rm(partial, { force: true })
		throw systemError(error, `copying ${shown}`)
	}
}

async function handOver(
	stdout: AsyncIterable<unknown>,
	onStdout: (chunk: Buffer) => void | Promise<void>,
): Promise<void> {
	for await (const chunk of stdout) await onStdout(chunk as Buffer)
}

async function naming<T>(doing: string, work: Promise<T>): Promise<void> {
	try {
		await work
	} catch (error) {
		throw systemError(error, doing)
	}
}

// Where to find what the operator uses: his keys, his Docker. Nothing else of his shell reaches a program.
const handedOn = ["SSH_AUTH_SOCK", "DOCKER_HOST", "DOCKER_CONFIG"] as const

// The programs' own words are parsed and shown: they must not change with the operator's language.
function programEnvironment(
	environment: Readonly<Record<string, string | undefined>>,
	standInRoot: string | undefined,
): Record<string, string> {
	const path = environment.PATH ?? "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	return {
		HOME: environment.HOME ?? "/root",
		LC_ALL: "C.UTF-8",
		PATH: standInRoot === undefined ? path : [join(standInRoot, "usr/local/bin"), path].join(delimiter),
		...Object.fromEntries(
			handedOn.flatMap((name) => {
				const value = environment[name]
				return value === undefined ? [] : [[name, value]]
			}),
		),
		...(standInRoot === undefined ? {} : { COMFYUME_ROOT: standInRoot }),
	}
}

function failure(
	command: Command,
	name: string,
	finished: Finished,
	result: {
		code?: string | undefined
		signal?: string | undefined
		isMaxBuffer?: boolean
	},
): OperatorError {
	if (result.code === "ENOENT") return notInstalled(command.program, name)
	const what = `${describe(command)} on ${name}`
	if (result.isMaxBuffer === true) return new OperatorError(`${what}: printed more than 64 MiB`)
	return commandFailure(command, name, { ...finished, signal: result.signal })
}

function stoppedBy(command: Command, signal: AbortSignal | undefined): OperatorError {
	const reason: unknown = signal?.reason
	return new OperatorError(`${describe(command)}: stopped`, {
		cause: reason,
		...(reason instanceof OperatorError ? { exitCode: reason.exitCode } : {}),
	})
}

const late = (command: Command, name: string) =>
	new OperatorError(`${describe(command)} on ${name}: no end after ${command.timeoutMs} ms`, {
		exitCode: exitCodes.unreachable,
	})

// Asks the whole group to end, and ends it after ten seconds: the time a program has to clean up.
function killGroup(pid: number | undefined): void {
	signalGroup(pid, "SIGTERM")
	setTimeout(() => signalGroup(pid, "SIGKILL"), 10_000).unref()
}

function signalGroup(pid: number | undefined, signal: "SIGTERM" | "SIGKILL"): void {
	if (pid === undefined) return
	try {
		process.kill(-pid, signal)
	} catch {
		// It ended on its own.
	}
}
