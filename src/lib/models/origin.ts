// The address that a model was published at (Hugging Face), as a source. Redirects are followed by hand: the token goes
// to the publisher's own host and never to the storage that it sends us to.
import type { IncomingMessage } from "node:http"
import { request } from "node:https"
import { Readable } from "node:stream"
import { setTimeout as pause } from "node:timers/promises"
import { codeOf, exitCodes, messageOf, OperatorError, systemError } from "../errors.ts"
import type { Secret } from "../secret.ts"
import type { ByteRange } from "../storage/byte-source.ts"
import { ObjectChanged } from "../storage/object-store.ts"
import { watchdog } from "../storage/watchdog.ts"
import { headBytes, kindOfHead } from "./kind.ts"
import type { ModelEntry } from "./manifest.ts"
import type { ModelSource, Offer } from "./offer.ts"
import { asksAgain, isRedirect, refusalOf } from "./origin-answers.ts"

export type OriginOptions = {
	/** HF_TOKEN, for gated models. */
	token: Secret | undefined
	/** Scheme, host and port that the token belongs to, as in `https://huggingface.co`. It is sent nowhere else. */
	tokenOrigin: string
	signal: AbortSignal
	/** Attempts in a row without a single byte, before it counts as unreachable. */
	attempts?: number
	retryDelayMs?: number
	/** The other side is waited for this long. */
	stallMs?: number
	random?: () => number
}

const mostRedirects = 5
const longestPauseMs = 20_000
const leastBytes = 16 * 1024

/** The source URLs of the manifest as a source; only for operators who choose it. */
export function originSource(options: OriginOptions): ModelSource {
	return {
		name: "origin",
		find: async (entry) =>
			entry.url === undefined ? undefined : await openOrigin(entry.url, entry, options),
	}
}

type Answer = { response: IncomingMessage; at: URL; linkedDigest?: string; linkedBytes?: number }

/**
 * Asks for the first bytes: who may read it, how large it is, and whether it is a file at all are known before
 * anything is written.
 * @throws {OperatorError} (6) when a token is missing or refused, or a licence isn't accepted; (4) when it can't be
 *   reached; (3) when something else than a file is there
 */
export async function openOrigin(
	address: string,
	entry: Pick<ModelEntry, "gated" | "repository">,
	options: OriginOptions,
): Promise<Offer> {
	const { token, tokenOrigin, attempts = 4, retryDelayMs = 500, stallMs = 30_000 } = options
	const start = new URL(address)
	if (start.protocol !== "https:")
		throw new OperatorError(`${address}: only https is taken`, { exitCode: exitCodes.refusedByGuard })
	const isTokens = start.origin === tokenOrigin
	let withToken = entry.gated === true && isTokens && token !== undefined
	// Where the last answer sent us: signed, and good for a while.
	let link: URL | undefined
	// What makes it the same file from one range to the next.
	let known: { sizeBytes: number; etag?: string; linkedDigest?: string } | undefined

	const send = (at: URL, range: ByteRange, signal: AbortSignal): Promise<IncomingMessage> => {
		const headers: Record<string, string> = {
			range: `bytes=${range.first}-${range.last}`,
			"accept-encoding": "identity",
			"user-agent": "comfyume",
			...(known?.etag === undefined ? {} : { "if-range": known.etag }),
		}
		if (withToken && at.origin === tokenOrigin && token !== undefined)
			headers["authorization"] = `Bearer ${token.reveal()}`
		return answerOf(at, headers, { signal, stallMs })
	}

	/** From the publisher's address, or from where it last sent us, to the answer that has the bytes. */
	const follow = async (from: URL, range: ByteRange, signal: AbortSignal): Promise<Answer> => {
		let at = from
		let linked: Pick<Answer, "linkedDigest" | "linkedBytes"> = {}
		for (let redirects = 0; redirects <= mostRedirects; redirects++) {
			const response = await send(at, range, signal)
			// Only the publisher's own word counts for what the file is.
			if (at.origin === start.origin) linked = { ...linked, ...linkedOf(response) }
			if (!isRedirect(response)) return { response, at, ...linked }
			response.destroy()
			const next = new URL(String(response.headers["location"]), at)
			if (next.protocol !== "https:")
				throw new OperatorError(
					`${address}: it redirects to ${next.protocol}//${next.host}, and only https is taken`,
					{
						exitCode: exitCodes.refusedByGuard,
					},
				)
			at = next
		}
		throw new OperatorError(`${address}: it redirects more than ${mostRedirects} times`)
	}

	const ask = async (range: ByteRange, signal: AbortSignal): Promise<Answer> => {
		if (link !== undefined) {
			const answer = await follow(link, range, signal)
			if (answer.response.statusCode === 206 || !asksAgain(answer.response)) return answer
			// The signature has expired: the publisher gives a new one.
			answer.response.destroy()
			link = undefined
		}
		let answer = await follow(start, range, signal)
		const { statusCode = 0 } = answer.response
		if (!withToken && isTokens && token !== undefined && (statusCode === 401 || statusCode === 403)) {
			answer.response.destroy()
			withToken = true
			answer = await follow(start, range, signal)
		}
		if (answer.at.origin !== start.origin) link = answer.at
		return answer
	}

	/** The answer to a range, held against what was asked for and what is known of the file. */
	const askFor = async (range: ByteRange, signal: AbortSignal): Promise<IncomingMessage> => {
		const { response, at, ...linked } = await ask(range, signal)
		try {
			const refusal = refusalOf(response, {
				address,
				host: at.host,
				withToken,
				hasToken: token !== undefined,
				isTokens,
				...(entry.repository === undefined ? {} : { repository: entry.repository }),
			})
			if (refusal !== undefined) throw refusal
			const { sizeBytes, etag } = announcedOf(response, range, { address, isKnown: known !== undefined })
			if (linked.linkedBytes !== undefined && linked.linkedBytes !== sizeBytes)
				throw new OperatorError(
					`${address}: ${start.host} says it has ${linked.linkedBytes} bytes, and ${at.host} has ${sizeBytes}`,
				)
			const changed =
				known !== undefined &&
				(known.sizeBytes !== sizeBytes ||
					differ(known.linkedDigest, linked.linkedDigest) ||
					differ(known.etag, etag))
			if (changed) throw new ObjectChanged(address)
			const { linkedDigest } = linked
			known ??= {
				sizeBytes,
				...(etag === undefined ? {} : { etag }),
				...(linkedDigest === undefined ? {} : { linkedDigest }),
			}
			return response
		} catch (error) {
			response.destroy()
			throw error
		}
	}

	/** A range to its last byte: what breaks off in between is gone on with where it broke. */
	async function* bytesOf({ first, last }: ByteRange, signal: AbortSignal): AsyncGenerator<Buffer> {
		let at = first
		for (let fruitless = 0; at <= last; ) {
			const before = at
			try {
				const response = await askFor(
					{ first: at, last: known === undefined ? last : Math.min(last, known.sizeBytes - 1) },
					signal,
				)
				const end = Math.min(last + 1, known?.sizeBytes ?? last + 1)
				for await (const chunk of watched(response, stallMs)) {
					at += chunk.length
					if (at > end) throw new OperatorError(`${address}: it sends more than it announced`)
					yield chunk
				}
				if (at === end) return
				throw Object.assign(new Error("the connection ended early"), { code: "ECONNRESET" })
			} catch (error) {
				signal.throwIfAborted()
				const failure = reachError(error, address)
				if (failure.exitCode !== exitCodes.unreachable) throw failure
				fruitless = at > before ? 1 : fruitless + 1
				if (fruitless >= attempts) throw failure
				const wantedMs = retryAfterMs(failure)
				if (wantedMs > longestPauseMs) throw failure
				const jitterMs = (options.random ?? Math.random)() * retryDelayMs * 2 ** fruitless
				await pause(Math.max(wantedMs, Math.min(jitterMs, longestPauseMs)), undefined, { signal })
			}
		}
	}

	const chunks: Buffer[] = []
	for await (const chunk of bytesOf({ first: 0, last: headBytes - 1 }, options.signal)) chunks.push(chunk)
	const kind = kindOfHead(Buffer.concat(chunks))
	if (kind !== "data")
		throw new OperatorError(`${address}: what is there is no model but ${kindsSay[kind]}`, {
			hint: "open the address in a browser",
		})
	if (known === undefined) throw new Error("an answer was taken that says no size")
	const { sizeBytes, etag, linkedDigest } = known as NonNullable<typeof known>
	const identity = linkedDigest ?? etag
	return {
		bytes: {
			name: start.host,
			place: address,
			sizeBytes,
			// By it a later run goes on with what came in this one.
			...(identity === undefined ? {} : { etag: identity }),
			access: {
				kind: "stream",
				open: async (range, signal) => {
					const both = signal === undefined ? options.signal : AbortSignal.any([signal, options.signal])
					return Readable.from(bytesOf(range, both), { objectMode: false, highWaterMark: 1 })
				},
			},
		},
		...(linkedDigest === undefined ? {} : { claim: { digest: linkedDigest, by: start.host } }),
	}
}

const kindsSay = {
	empty: "an empty file",
	"lfs-pointer": "a Git LFS pointer",
	html: "an HTML page",
	json: "a JSON text",
} as const

const differ = (one: string | undefined, other: string | undefined) =>
	one !== undefined && other !== undefined && one !== other

/** What Hugging Face says of a large file beside the redirect to its storage. */
function linkedOf({ headers }: IncomingMessage): Pick<Answer, "linkedDigest" | "linkedBytes"> {
	const [, digest] = /^(?:W\/)?"?([0-9a-f]{64})"?$/.exec(String(headers["x-linked-etag"] ?? "")) ?? []
	const size = String(headers["x-linked-size"] ?? "")
	return {
		...(digest === undefined ? {} : { linkedDigest: digest }),
		...(/^\d{1,15}$/.test(size) ? { linkedBytes: Number(size) } : {}),
	}
}

/** Size of the whole and identity, from an answer that has exactly the range that was asked for. */
function announcedOf(
	{ statusCode, headers }: IncomingMessage,
	{ first, last }: ByteRange,
	{ address, isKnown }: { address: string; isKnown: boolean },
): { sizeBytes: number; etag?: string } {
	const encoding = headers["content-encoding"]
	if (encoding !== undefined && encoding !== "identity")
		throw new OperatorError(`${address}: it sends the file ${encoding}-encoded, which was not asked for`)
	// If-Range: the whole file comes when it is another one.
	if (statusCode === 200 && isKnown) throw new ObjectChanged(address)
	if (statusCode === 200)
		throw new OperatorError(`${address}: it gives no ranges, and a model can't be fetched without them`)
	const [, from, to, whole] = /^bytes (\d+)-(\d+)\/(\d+)$/.exec(headers["content-range"] ?? "") ?? []
	const sizeBytes = Number(whole)
	if (Number(from) !== first || Number(to) !== Math.min(last, sizeBytes - 1))
		throw new OperatorError(
			`${address}: asked for bytes ${first}-${last}, it sends ${headers["content-range"] ?? "an unnamed range"}`,
		)
	const { etag } = headers
	// A weak one says that two files are alike, not that they are the same.
	return { sizeBytes, ...(etag === undefined || etag.startsWith("W/") ? {} : { etag }) }
}

/** One request, up to its headers. No redirect is followed. */
function answerOf(
	at: URL,
	headers: Readonly<Record<string, string>>,
	{ signal, stallMs }: { signal: AbortSignal; stallMs: number },
): Promise<IncomingMessage> {
	return new Promise((resolve, reject) => {
		const sent = request(at, { method: "GET", headers, signal })
		const silent = setTimeout(() => sent.destroy(silence()), stallMs)
		sent.once("error", (error) => {
			clearTimeout(silent)
			reject(error)
		})
		sent.once("response", (response) => {
			clearTimeout(silent)
			// Destroying an answer that nobody reads must not end the program.
			response.on("error", () => {})
			resolve(response)
		})
		sent.end()
	})
}

const silence = () => Object.assign(new Error("no answer in time"), { code: "ETIMEDOUT" })

async function* watched(response: IncomingMessage, stallMs: number): AsyncGenerator<Buffer> {
	const dog = watchdog({ stallMs, leastBytes, onStall: () => response.destroy(silence()) })
	try {
		dog.resume()
		for await (const chunk of response as AsyncIterable<Buffer>) {
			dog.pause()
			dog.moved(chunk.length)
			yield chunk
			dog.resume()
		}
	} finally {
		dog.pause()
	}
}

/** What Node throws when the other side can't be reached or breaks off, worth another attempt. */
function reachError(error: unknown, address: string): OperatorError {
	if (error instanceof OperatorError) return error
	const code = codeOf(error) ?? ""
	const known = systemError(error, `fetching ${address}`)
	if (known.exitCode === exitCodes.unreachable) return known
	if (/^ERR_(TLS|SSL)|CERT|SELF_SIGNED|UNABLE_TO_/.test(code))
		return new OperatorError(`fetching ${address}: no secure connection: ${messageOf(error)}`, {
			hint: "date; a proxy of this network can stand in between",
			cause: error,
		})
	if (
		["EPIPE", "ECONNABORTED", "EPROTO", "HPE_INVALID_CONSTANT"].includes(code) ||
		/aborted|hang up/.test(messageOf(error))
	)
		return new OperatorError(`fetching ${address}: the connection was closed`, {
			exitCode: exitCodes.unreachable,
			cause: error,
		})
	return known
}

const retryAfterMs = ({ cause }: OperatorError): number =>
	typeof cause === "object" && cause !== null && "retryAfterMs" in cause ? Number(cause.retryAfterMs) : 0
