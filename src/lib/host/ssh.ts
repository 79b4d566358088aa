// A host behind SSH: one connection, commands as channels on it, files as commands with a stream.
import { randomUUID } from "node:crypto"
import { once } from "node:events"
import { createReadStream } from "node:fs"
import { open, rename, rm, stat } from "node:fs/promises"
import { dirname } from "node:path"
import { Readable } from "node:stream"
import type { Client, ClientChannel } from "ssh2"
import { exitCodes, messageOf, OperatorError, systemError } from "../errors.ts"
import { type Command, describe } from "./command.ts"
import { commandFailure, lastLines, longestOutputBytes, notInstalled } from "./failures.ts"
import type { ExecuteOptions, Finished, Host } from "./host.ts"
import { commandLine, failureKind, script, stopped, sudoRefusal, withdrawal } from "./ssh-command.ts"
import { connectSsh, type SshConnectOptions } from "./ssh-connection.ts"
import { cannotStart, fetchScript, placeScript, scriptCodes } from "./ssh-scripts.ts"
import { syncPath } from "./sync.ts"

export type SshHostOptions = SshConnectOptions & {
	/** Run everything as root by `sudo -n` when the user is another. */
	sudo: boolean
}

// OpenSSH's MaxSessions is 10; two are left to whoever shares the connection's limits.
const mostChannels = 8

/**
 * Connects to a host and logs in. When `signal` is aborted, what runs there is hung up, and killed ten seconds later;
 * the same happens when the connection is lost. `await using` closes the connection.
 * @throws {OperatorError} `unreachable`, `refusedByGuard` for the host's key, `refusedCredentials` for ours
 */
export async function openSshHost(options: SshHostOptions): Promise<Host> {
	const client = await connectSsh(options)
	return new SshHost(client, options)
}

type Ended = {
	exitCode: number
	stdout: Buffer
	stderr: string
	/** The signal that ended the program, as in `SIGTERM`. */
	signal?: string
	/** What the supervisor couldn't find: the program or its working directory. */
	missing?: { what: "program" | "directory"; because: string }
}

class SshHost implements Host {
	readonly name: string
	readonly place: string
	readonly #client: Client
	readonly #options: SshHostOptions
	readonly #lost: Promise<never>
	#lostBecause: OperatorError | undefined
	#freeChannels = mostChannels
	readonly #waiting: (() => void)[] = []

	constructor(client: Client, options: SshHostOptions) {
		this.name = options.name
		this.place = `${options.user}@${options.address} port ${options.port}`
		this.#client = client
		this.#options = options
		this.#lost = new Promise((_, reject) => {
			const lose = (why: string, cause?: unknown) => {
				this.#lostBecause ??= new OperatorError(`the connection to ${this.name} was lost${why}`, {
					exitCode: exitCodes.unreachable,
					hint: "run the same command again: it goes on where it stopped",
					cause,
				})
				client.destroy()
				reject(this.#lostBecause)
			}
			client.on("error", (error) => lose(`: ${messageOf(error)}`, error)).on("close", () => lose(""))
		})
		this.#lost.catch(() => {})
	}

	async test(command: Command): Promise<boolean> {
		const ended = await this.#run(command, {})
		if (ended.missing?.what === "directory") throw this.#failure(command, ended)
		return ended.exitCode === 0
	}

	async capture(command: Command, options: ExecuteOptions = {}): Promise<Finished> {
		const ended = await this.#run(command, options)
		if (![0, ...(options.allowedExitCodes ?? [])].includes(ended.exitCode) || ended.missing !== undefined)
			throw this.#failure(command, ended)
		return { exitCode: ended.exitCode, stdout: ended.stdout.toString(), stderr: ended.stderr }
	}

	execute(command: Command, options?: ExecuteOptions): Promise<Finished> {
		return this.capture(command, options)
	}

	async read(path: string): Promise<Buffer | undefined> {
		const ended = await this.#run(script(fetchScript, path, String(longestOutputBytes)), {
			longestBytes: longestOutputBytes + 32,
		})
		if (ended.exitCode === scriptCodes.missing) return undefined
		if (ended.exitCode === scriptCodes.tooLarge) throw new OperatorError(`${path} is larger than 64 MiB`)
		if (ended.exitCode !== 0) throw this.#fileFailure(`reading ${path}`, ended)
		const { size, start } = sizeLine(ended.stdout) ?? { size: Number.NaN, start: 0 }
		const content = ended.stdout.subarray(start)
		// Files of the kernel's say 0 and hold something; a log may have grown.
		if (!(content.length >= size)) throw new OperatorError(`reading ${path} on ${this.name}: cut short`)
		return content
	}

	async write(
		path: string,
		content: string | Uint8Array,
		options: { mode: number; owner?: string },
	): Promise<void> {
		const bytes = Buffer.from(content)
		await this.#place(path, options, bytes.length, bytes, `writing ${path}`)
	}

	async put(
		localFile: string,
		path: string,
		options: { mode: number; onProgress?: (doneBytes: number) => void },
	): Promise<void> {
		const doing = `putting ${localFile} to ${path}`
		let size: number
		try {
			size = (await stat(localFile)).size
		} catch (error) {
			throw systemError(error, doing)
		}
		const source = createReadStream(localFile, { highWaterMark: 1024 * 1024 })
		const counted = async function* () {
			let done = 0
			for await (const chunk of source) {
				yield chunk
				done += chunk.length
				options.onProgress?.(done)
			}
		}
		try {
			await this.#place(path, options, size, Readable.from(counted()), doing)
		} catch (error) {
			throw systemError(error, doing)
		} finally {
			source.destroy()
		}
	}

	async get(
		path: string,
		localFile: string,
		options: { mode: number; onProgress?: (doneBytes: number) => void },
	): Promise<void> {
		const doing = `getting ${path}`
		const partial = `${localFile}.${randomUUID().slice(0, 8)}.partial`
		try {
			const handle = await open(partial, "wx", options.mode)
			try {
				await handle.chmod(options.mode)
				let expected: number | undefined
				let head: Buffer = Buffer.alloc(0)
				let done = 0
				const ended = await this.#run(script(fetchScript, path, "0"), {
					onStdout: async (chunk) => {
						let content = chunk
						if (expected === undefined) {
							head = Buffer.concat([head, chunk])
							const line = sizeLine(head)
							if (line === undefined) return
							expected = line.size
							content = head.subarray(line.start)
						}
						await handle.writeFile(content)
						done += content.length
						options.onProgress?.(done)
					},
				})
				if (ended.exitCode === scriptCodes.missing)
					throw new OperatorError(`${doing}: there is no such file on ${this.name}`)
				if (ended.exitCode !== 0) throw this.#fileFailure(doing, ended)
				if (done !== expected)
					throw new OperatorError(`${doing} from ${this.name}: ${done} of ${expected} bytes arrived`)
				await handle.sync()
			} finally {
				await handle.close()
			}
			await rename(partial, localFile)
			await syncPath(dirname(localFile))
		} catch (error) {
			await rm(partial, { force: true })
			throw systemError(error, `${doing} to ${localFile}`)
		}
	}

	async [Symbol.asyncDispose](): Promise<void> {
		if (this.#lostBecause !== undefined) return
		this.#lostBecause = new OperatorError(`the connection to ${this.name} is closed`, {
			exitCode: exitCodes.bug,
		})
		const closed = once(this.#client, "close")
		this.#client.end()
		// A host that doesn't answer any more must not keep us.
		const impatience = setTimeout(() => this.#client.destroy(), 2000)
		await closed.catch(() => {})
		clearTimeout(impatience)
	}

	async #place(
		path: string,
		{ mode, owner = "" }: { mode: number; owner?: string },
		size: number,
		content: Uint8Array | Readable,
		doing: string,
	): Promise<void> {
		const partial = `${path}.${randomUUID().slice(0, 8)}.partial`
		const place = script(placeScript, path, partial, mode.toString(8), owner, String(size))
		const ended = await this.#run(place, { stdin: content })
		if (ended.exitCode !== 0) throw this.#fileFailure(doing, ended)
	}

	async #run(command: Command, options: ExecuteOptions & { longestBytes?: number }): Promise<Ended> {
		const signal = options.signal ?? this.#options.signal
		if (signal.aborted) throw stopped(command, signal)
		if (this.#lostBecause !== undefined) throw this.#lostBecause
		if (this.#freeChannels > 0) this.#freeChannels--
		else await new Promise<void>((resolve) => this.#waiting.push(resolve))
		try {
			if (signal.aborted) throw stopped(command, signal)
			return await this.#runOnChannel(command, options, signal)
		} finally {
			const next = this.#waiting.shift()
			if (next === undefined) this.#freeChannels++
			else next()
		}
	}

	async #runOnChannel(
		command: Command,
		options: ExecuteOptions & { longestBytes?: number },
		signal: AbortSignal,
	): Promise<Ended> {
		const secrets = Object.entries(command.secretEnvironment ?? {})
			.map(([name, value]) => `${name}=${value}\0`)
			.join("")
		const channel = await this.#openChannel(commandLine(command, Buffer.byteLength(secrets), this.#asRoot))
		const closed = new Promise<void>((resolve) => channel.once("close", () => resolve()))
		channel.on("error", () => {})
		let how: Pick<Ended, "exitCode" | "signal"> | undefined
		channel.once("exit", (code: number | null, name?: string) => {
			how =
				code === null ? { exitCode: -1, ...(name === undefined ? {} : { signal: name }) } : { exitCode: code }
		})
		const stop = withdrawal(command, signal)
		try {
			const work = Promise.all([
				readOutput(channel, command, options),
				readErrors(channel, options.onStderr),
				// A program may end without having read all that it was offered.
				Promise.race([feed(channel, secrets, options.stdin), closed]),
				closed,
			])
			work.catch(() => {})
			const [stdout, stderr] = await Promise.race([work, stop.withdrawn, this.#lost])
			if (this.#lostBecause !== undefined) throw this.#lostBecause
			if (how === undefined)
				throw new OperatorError(`${describe(command)} on ${this.name}: ended without an exit status`, {
					exitCode: exitCodes.unreachable,
				})
			const [, what, because] = (how.exitCode === 127 && cannotStart.exec(stderr)) || []
			return {
				...how,
				stdout,
				stderr,
				...(what === undefined || because === undefined
					? {}
					: { missing: { what: what === "directory" ? what : "program", because } }),
			}
		} catch (error) {
			// Its output pipes go with the channel; the supervisor sees that and ends the program.
			channel.close()
			if (options.stdin instanceof Readable) options.stdin.destroy()
			// A lost connection shows first in its channels.
			if (error instanceof OperatorError || !isPrematureClose(error)) throw error
			await Promise.race([this.#lost, stop.withdrawn])
			throw error
		} finally {
			stop.release()
		}
	}

	#openChannel(line: string): Promise<ClientChannel> {
		const opened = new Promise<ClientChannel>((resolve, reject) => {
			this.#client.exec(line, (error, channel) => {
				if (error === undefined) return resolve(channel)
				reject(
					new OperatorError(`${this.name} opens no further session: ${messageOf(error)}`, {
						exitCode: exitCodes.unreachable,
						hint: "MaxSessions in the host's sshd_config",
					}),
				)
			})
		})
		return Promise.race([opened, this.#lost])
	}

	get #asRoot(): boolean {
		return this.#options.sudo && this.#options.user !== "root"
	}

	#failure(command: Command, ended: Ended): OperatorError {
		if (this.#asRoot && ended.exitCode === 1 && /^sudo: /m.test(ended.stderr))
			return sudoRefusal(this.name, this.#options.user, ended.stderr)
		if (ended.missing?.what === "program" && ended.missing.because === "No such file or directory")
			return notInstalled(command.program, this.name)
		return commandFailure(command, this.name, {
			...ended,
			...(ended.missing === undefined
				? {}
				: { stderr: `${command.workingDirectory}: ${ended.missing.because}` }),
		})
	}

	#fileFailure(doing: string, ended: Ended): OperatorError {
		if (this.#asRoot && ended.exitCode === 1 && /^sudo: /m.test(ended.stderr))
			return sudoRefusal(this.name, this.#options.user, ended.stderr)
		const { hint, exitCode } = failureKind(ended.stderr)
		const said = lastLines(ended.stderr) || `exit code ${ended.exitCode}`
		return new OperatorError(`${doing} on ${this.name}: ${said}`, {
			exitCode,
			...(hint === undefined ? {} : { hint }),
		})
	}
}

async function readOutput(
	channel: ClientChannel,
	command: Command,
	{ onStdout, longestBytes = longestOutputBytes }: ExecuteOptions & { longestBytes?: number },
): Promise<Buffer> {
	const chunks: Buffer[] = []
	let total = 0
	for await (const chunk of channel as AsyncIterable<Buffer>) {
		if (onStdout !== undefined) await onStdout(chunk)
		else {
			total += chunk.length
			if (total > longestBytes) throw new OperatorError(`${describe(command)}: printed more than 64 MiB`)
			chunks.push(chunk)
		}
	}
	return Buffer.concat(chunks)
}

// stderr shares the channel's window with stdout: it is always read, and only its end is kept.
async function readErrors(
	channel: ClientChannel,
	onStderr: ((chunk: Buffer) => void) | undefined,
): Promise<string> {
	const chunks: Buffer[] = []
	let total = 0
	for await (const chunk of channel.stderr as AsyncIterable<Buffer>) {
		onStderr?.(chunk)
		chunks.push(chunk)
		total += chunk.length
		while (total - (chunks[0]?.length ?? 0) > longestOutputBytes) total -= chunks.shift()?.length ?? 0
	}
	return Buffer.concat(chunks).toString()
}

async function feed(channel: ClientChannel, secrets: string, stdin: ExecuteOptions["stdin"]): Promise<void> {
	if (secrets !== "") channel.write(secrets)
	if (stdin instanceof Readable) {
		for await (const chunk of stdin) {
			if (!channel.write(chunk)) await once(channel, "drain")
		}
		channel.end()
	} else channel.end(stdin)
}

function sizeLine(bytes: Buffer): { size: number; start: number } | undefined {
	const end = bytes.indexOf(10)
	return end === -1 ? undefined : { size: Number(bytes.toString("latin1", 0, end)), start: end + 1 }
}

const isPrematureClose = (error: unknown): boolean =>
	error instanceof Error && "code" in error && error.code === "ERR_STREAM_PREMATURE_CLOSE"
