// This machine as a host, or a directory that stands in for a machine. The only place that starts local programs.
import { randomUUID } from "node:crypto"
import { constants } from "node:fs"
import { copyFile, link, mkdir, open, readFile, rename, rm, stat } from "node:fs/promises"
import { delimiter, dirname, join } from "node:path"
import { execa } from "execa"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { type Command, describe } from "./command.ts"
import type { ExecuteOptions, Finished, Host, TransferOptions, WriteOptions } from "./host.ts"

const longestOutputBytes = 64 * 1024 * 1024

/** Direct changes to the disk, for work that would be slow or not atomic through commands. Paths as on the host. */
export type LocalFiles = {
	/** With its parents; what exists already keeps its mode. */
	makeDirectory(path: string, mode: number): Promise<void>
	/** Atomic; replaces a file or an empty directory. */
	rename(from: string, to: string): Promise<void>
	/** A second name for a file; fails with `EEXIST` when the name is taken. Returns false instead across file systems. */
	link(from: string, to: string): Promise<boolean>
	/** A file or a whole tree; nothing happens when there is none. */
	remove(path: string): Promise<void>
	/** Makes the names in a directory survive a power cut. */
	syncDirectory(path: string): Promise<void>
}

/** This machine. Besides what every host can, its disk is at hand. */
export interface LocalHost extends Host {
	/** `/`, or the directory that stands in for a machine. */
	readonly root: string
	/** True for a directory: owners are not set there and not compared. */
	readonly standIn: boolean
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
		const { onStdout, stdin, allowedExitCodes = [] } = options
		const subprocess = execa(command.program, [...command.args], {
			reject: false,
			extendEnv: false,
			env: { ...baseEnvironment, ...command.environment, ...command.secretEnvironment },
			...(command.workingDirectory === undefined ? {} : { cwd: path(command.workingDirectory) }),
			...(command.timeoutMs === undefined ? {} : { timeout: command.timeoutMs }),
			...(signal === undefined ? {} : { cancelSignal: signal }),
			...(stdin === undefined ? { stdin: "ignore" as const } : { input: stdin }),
			maxBuffer: longestOutputBytes,
			stripFinalNewline: false,
			...(onStdout === undefined ? {} : { buffer: { stdout: false, stderr: true } }),
		})
		if (onStdout !== undefined && subprocess.stdout !== null) {
			try {
				for await (const chunk of subprocess.stdout) await onStdout(chunk as Buffer)
			} catch (error) {
				subprocess.kill("SIGKILL")
				await subprocess
				throw error
			}
		}
		const result = await subprocess
		const finished = {
			exitCode: result.exitCode ?? -1,
			stdout: onStdout === undefined ? String(result.stdout ?? "") : "",
			stderr: String(result.stderr ?? ""),
		}
		if (result.isCanceled) throw new OperatorError(`${describe(command)}: stopped`, { cause: result.cause })
		if (result.exitCode !== undefined && [0, ...allowedExitCodes].includes(result.exitCode)) return finished
		throw failure(command, name, finished, result)
	}

	const files: LocalFiles = {
		makeDirectory: (at, mode) => naming(`making directory ${at}`, mkdir(path(at), { recursive: true, mode })),
		rename: (from, to) => naming(`renaming ${from} to ${to}`, rename(path(from), path(to))),
		link: (from, to) =>
			link(path(from), path(to)).then(
				() => true,
				(error) => {
					if (codeOf(error) === "EXDEV") return false
					throw codeOf(error) === "EEXIST" ? error : systemError(error, `linking ${from} to ${to}`)
				},
			),
		remove: (at) => naming(`removing ${at}`, rm(path(at), { recursive: true, force: true })),
		syncDirectory: (at) => naming(`syncing ${at}`, syncPath(path(at))),
	}

	return {
		name,
		place: standIn ? `stand-in: the directory ${root}` : "this machine",
		root,
		standIn,
		path,
		files,
		test: async (command) => {
			try {
				await run(command)
				return true
			} catch (error) {
				if (signal?.aborted === true) throw error
				return false
			}
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
			const handle = await open(partial, "wx", mode)
			try {
				// `open` honours the umask; the mode asked for is the mode it gets.
				await handle.chmod(mode)
				await fill(handle)
				await handle.sync()
			} finally {
				await handle.close()
			}
			if (owner !== undefined && !standIn) await run({ program: "chown", args: ["--", owner, partial] })
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
		await copyFile(from, partial, constants.COPYFILE_EXCL | constants.COPYFILE_FICLONE)
		const handle = await open(partial, "r+")
		try {
			await handle.chmod(mode)
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

async function syncPath(path: string): Promise<void> {
	const handle = await open(path, "r")
	try {
		await handle.sync()
	} finally {
		await handle.close()
	}
}

async function naming<T>(doing: string, work: Promise<T>): Promise<void> {
	try {
		await work
	} catch (error) {
		throw systemError(error, doing)
	}
}

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
		...(environment.SSH_AUTH_SOCK === undefined ? {} : { SSH_AUTH_SOCK: environment.SSH_AUTH_SOCK }),
		...(standInRoot === undefined ? {} : { COMFYUME_ROOT: standInRoot }),
	}
}

function failure(
	command: Command,
	name: string,
	finished: Finished,
	result: {
		code?: string | undefined
		timedOut?: boolean
		signal?: string | undefined
		isMaxBuffer?: boolean
	},
): OperatorError {
	const what = `${describe(command)} on ${name}`
	if (result.code === "ENOENT")
		return new OperatorError(`${command.program} is not installed on ${name}`, {
			hint: `apt-get install ${packageOf(command.program)}`,
		})
	if (result.timedOut === true)
		return new OperatorError(`${what}: no end after ${command.timeoutMs} ms`, {
			exitCode: exitCodes.unreachable,
		})
	if (result.isMaxBuffer === true) return new OperatorError(`${what}: printed more than 64 MiB`)
	const ended = result.signal === undefined ? `exit code ${finished.exitCode}` : `killed by ${result.signal}`
	const said = lastLines(finished.stderr)
	const noSpace = /No space left on device|Disk quota exceeded/.test(finished.stderr)
	return new OperatorError(`${what}: ${ended}${said === "" ? "" : `: ${said}`}`, {
		...(noSpace ? { exitCode: exitCodes.noSpace, hint: "df -h; df -i" } : {}),
	})
}

/** The last three lines of what a program complained about, on one line. */
export function lastLines(text: string): string {
	return text.trim().split("\n").slice(-3).join(" | ").slice(-600)
}

// Programs whose Debian package has another name.
const packages: Readonly<Record<string, string>> = {
	keyctl: "keyutils",
	flock: "util-linux",
	sshd: "openssh-server",
	"ssh-keyscan": "openssh-client",
	"ssh-keygen": "openssh-client",
}

const packageOf = (program: string) => packages[program] ?? program
