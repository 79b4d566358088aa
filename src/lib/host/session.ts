// A run of comfyume on a host, directed from elsewhere. In: one frame with what the run needs, secrets included, then
// silence; the end of stdin means abort. Out: events, one per line. What it says to people comes on stderr.
import { PassThrough, type Readable } from "node:stream"
import { StringDecoder } from "node:string_decoder"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import { type Event, eventSchema } from "../plan/events.ts"
import { command } from "./command.ts"
import type { Host } from "./host.ts"

const longestFrameBytes = 4 * 1024 * 1024
const longestLineLength = 4 * 1024 * 1024
const everyExitCode = Array.from({ length: 255 }, (_, index) => index + 1)

export type HostRun = {
	/** comfyume on the host, as `ensureRelease` gave it. */
	executable: string
	argv: readonly string[]
	/** Sent as JSON; the only way for a secret to get there. At most 4 MiB. */
	payload: unknown
	onEvent: (event: Event) => void
	/** Text for the operator's screen, in pieces as they come. */
	onTalk: (text: string) => void
	/** When aborted, the host is told, and has `graceMs` to clean up and to say how it ended. */
	signal: AbortSignal
	/** 10 000 without it. */
	graceMs?: number
}

/**
 * Runs comfyume on a host and hands its events over. Gives its exit code.
 * @throws {OperatorError} `unreachable` when the connection is lost, `incomplete` when what comes back is no event,
 * the signal's own exit code when the host doesn't end in time after an abort
 */
export async function runOnHost(host: Host, run: HostRun): Promise<number> {
	const { signal, graceMs = 10_000 } = run
	const control = new PassThrough()
	control.write(frameOf(run.payload))
	const overdue = new AbortController()
	let timer: NodeJS.Timeout | undefined
	const onAbort = () => {
		control.end()
		timer = setTimeout(() => overdue.abort(signal.reason), graceMs)
	}
	if (signal.aborted) throw signal.reason
	signal.addEventListener("abort", onAbort, { once: true })
	const talk = new StringDecoder("utf8")
	const lines = lineReader((line) => run.onEvent(readEvent(line, host.name)))
	try {
		const { exitCode } = await host.execute(command(run.executable, "--session", ...run.argv), {
			stdin: control,
			signal: overdue.signal,
			allowedExitCodes: everyExitCode,
			onStdout: lines.push,
			onStderr: (chunk) => run.onTalk(talk.write(chunk)),
		})
		lines.end()
		return exitCode
	} finally {
		clearTimeout(timer)
		signal.removeEventListener("abort", onAbort)
		control.destroy()
	}
}

export type Session = {
	payload: unknown
	/** Aborted when stdin ends or fails: whoever directed this run is gone, or wants it to stop. Exit code 129. */
	aborted: AbortSignal
}

/**
 * The host's side: reads the frame from stdin and watches what follows.
 * @throws {OperatorError} `usage` for a frame that is too long, cut short or no JSON
 */
export async function readSession(stdin: Readable): Promise<Session> {
	let bytes = Buffer.alloc(0)
	const frame = await new Promise<Buffer>((resolve, reject) => {
		const refuse = (why: string) => reject(badFrame(why))
		const onData = (chunk: Buffer) => {
			bytes = Buffer.concat([bytes, chunk])
			const length = bytes.length < 4 ? undefined : bytes.readUInt32BE(0)
			if (length !== undefined && length > longestFrameBytes) {
				stdin.off("data", onData)
				return refuse(`it says that it is ${length} bytes long, and at most 4 MiB are taken`)
			}
			if (length === undefined || bytes.length < 4 + length) return
			stdin.off("data", onData)
			resolve(bytes.subarray(4, 4 + length))
		}
		stdin.on("data", onData)
		stdin.once("end", () => refuse("it was cut short"))
		stdin.once("error", (error) => refuse(messageOf(error)))
	})
	let payload: unknown
	try {
		payload = JSON.parse(frame.toString("utf8"))
	} catch {
		// The parser's own message quotes what it read, and that holds secrets.
		throw badFrame("it is no JSON")
	}
	const controller = new AbortController()
	const hangUp = () =>
		controller.abort(
			new OperatorError("hung up: whoever started this run is gone, or stopped it", {
				exitCode: exitCodes.hungUp,
			}),
		)
	stdin.once("end", hangUp).once("error", hangUp).once("close", hangUp)
	if (stdin.readableEnded || stdin.destroyed) hangUp()
	// Nothing more is expected; only flowing streams notice their end.
	stdin.resume()
	return { payload, aborted: controller.signal }
}

/** Four bytes of length, the highest first, then JSON. */
function frameOf(payload: unknown): Buffer {
	const json = Buffer.from(JSON.stringify(payload) ?? "null")
	if (json.length > longestFrameBytes)
		throw new OperatorError(`what the run needs is ${json.length} bytes long, and at most 4 MiB can be sent`)
	const length = Buffer.alloc(4)
	length.writeUInt32BE(json.length)
	return Buffer.concat([length, json])
}

function badFrame(why: string): OperatorError {
	return new OperatorError(`the frame on stdin can't be used: ${why}`, {
		exitCode: exitCodes.usage,
		hint: "--session is for comfyume's own use; run the command without it",
	})
}

function readEvent(line: string, hostName: string): Event {
	let parsed: unknown
	try {
		parsed = JSON.parse(line)
	} catch {
		throw strange(line, hostName)
	}
	const event = eventSchema.safeParse(parsed)
	if (!event.success) throw strange(line, hostName)
	return event.data
}

function strange(line: string, hostName: string): OperatorError {
	const shown = JSON.stringify(line.length > 120 ? `${line.slice(0, 120)}…` : line)
	return new OperatorError(`the comfyume on ${hostName} speaks another language: ${shown}`, {
		hint: "run the command on the host itself and look at what it prints",
	})
}

function lineReader(onLine: (line: string) => void): { push: (chunk: Buffer) => void; end: () => void } {
	const decoder = new StringDecoder("utf8")
	let rest = ""
	return {
		push: (chunk) => {
			const lines = (rest + decoder.write(chunk)).split("\n")
			rest = lines.pop() ?? ""
			for (const line of lines) if (line !== "") onLine(line)
			// No event is that long: it would only fill our memory.
			if (rest.length > longestLineLength) onLine(rest)
		},
		end: () => {
			if (rest !== "") onLine(rest)
		},
	}
}
