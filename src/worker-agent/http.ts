// One way to ask for JSON over HTTP: with a deadline, no redirects, and errors that say whether asking again may help.
import { messageOf } from "../lib/errors.ts"
import type { Secret } from "../lib/secret.ts"

export type Ask = {
	method?: "GET" | "POST"
	body?: unknown
	token?: Secret | undefined
	headers?: Readonly<Record<string, string>>
	timeoutMs?: number
}

/** Nobody answered, or somebody who can't at the moment: asking again may help. */
export class UnreachableError extends Error {}

/** The other side answered and said no. */
export class RefusedError extends Error {
	readonly status: number
	/** The answer's JSON, or its text. */
	readonly answer: unknown

	constructor(message: string, status: number, answer: unknown) {
		super(message)
		this.status = status
		this.answer = answer
	}
}

// Answers that say "not now". A token that is refused may be being exchanged at this moment.
const passing = new Set([401, 403, 408, 425, 429])

/** Asks, and gives the answer's JSON; undefined when the answer is empty. Throws as `askFully`. */
export async function ask(url: string, what?: Ask): Promise<unknown> {
	return (await askFully(url, what)).json
}

/**
 * Asks, and gives the answer's headers too.
 * @throws {UnreachableError} no answer in time, 5xx, or one of the answers that pass
 * @throws {RefusedError} any other answer that isn't 2xx
 */
export async function askFully(url: string, what: Ask = {}): Promise<{ json: unknown; headers: Headers }> {
	const { method, body, token, headers, timeoutMs = 10_000 } = what
	let status: number
	let text: string
	let answered: Headers
	try {
		const response = await fetch(url, {
			method: method ?? (body === undefined ? "GET" : "POST"),
			redirect: "manual",
			signal: AbortSignal.timeout(timeoutMs),
			headers: {
				...headers,
				...(body === undefined ? {} : { "content-type": "application/json" }),
				...(token === undefined ? {} : { authorization: `Bearer ${token.reveal()}` }),
			},
			...(body === undefined ? {} : { body: JSON.stringify(body) }),
		})
		status = response.status
		answered = response.headers
		text = await response.text()
	} catch (error) {
		// fetch hides what happened in the cause.
		const cause = error instanceof Error && error.cause !== undefined ? error.cause : error
		throw new UnreachableError(`${pathOf(url)}: ${messageOf(cause)}`, { cause: error })
	}
	const answer = parsed(text)
	if (status >= 200 && status < 300) {
		if (text !== "" && answer === undefined)
			throw new UnreachableError(`${pathOf(url)}: an answer that is no JSON`)
		return { json: answer, headers: answered }
	}
	const message = `${pathOf(url)}: HTTP ${status}${detailOf(answer, text)}`
	if (status >= 500 || passing.has(status)) throw new UnreachableError(message)
	throw new RefusedError(message, status, answer ?? text)
}

function parsed(text: string): unknown {
	try {
		return JSON.parse(text)
	} catch {
		return undefined
	}
}

function detailOf(answer: unknown, text: string): string {
	const detail =
		typeof answer === "object" && answer !== null && "detail" in answer ? answer.detail : undefined
	const says = typeof detail === "string" ? detail : JSON.stringify(detail ?? answer ?? text)
	return says === undefined || says === '""' ? "" : `: ${says.slice(0, 300)}`
}

const pathOf = (url: string) => new URL(url).origin + new URL(url).pathname
