// Runs told over HTTP: pings by the convention of healthchecks.io, messages by ntfy's. Keys leave the program here.
import { codeOf, messageOf, OperatorError } from "../errors.ts"
import type { Secret } from "../secret.ts"
import type { Told } from "./notify.ts"

/** Of what a ping says; more is cut at its beginning. */
const longestPingBytes = 10_000
/** ntfy makes an attachment of more than 4096. */
const longestMessageBytes = 2500

type Asked = { timeoutMs: number }

/** `start`, the run's exit code, or `log`, which tells of something and changes no check. */
export async function ping(
	{ url, key, runId }: { url: string; key: Secret; runId: string },
	{ environment, host, task }: Pick<Told, "environment" | "host" | "task">,
	signal: "start" | "log" | number,
	body: string,
	asked: Asked,
): Promise<void> {
	const slug = `${environment}-${host}-${task}`
	const at = `${url.replace(/\/+$/, "")}/${encodeURIComponent(key.reveal())}/${slug}/${signal}`
	const said = await post(
		`${at}?rid=${runId}&create=1`,
		lastBytes(body, longestPingBytes),
		"text/plain",
		asked,
	)
	// A ping that was not taken can be answered with 200, too.
	if (/^OK \(/.test(said)) throw new OperatorError(`it answers: ${said}`)
}

const priorities = { min: 1, low: 2, default: 3, high: 4, max: 5 } as const
export type Priority = keyof typeof priorities

/** The topic goes in the body: an address stands in logs on the way. */
export async function publish(
	{ url, topic }: { url: string; topic: Secret },
	message: { title: string; text: string; priority: Priority; tag: string },
	asked: Asked,
): Promise<void> {
	const { title, text, priority, tag } = message
	const body = {
		topic: topic.reveal(),
		title,
		message: lastBytes(text, longestMessageBytes),
		priority: priorities[priority],
		tags: [tag],
	}
	await post(`${url.replace(/\/+$/, "")}/`, JSON.stringify(body), "application/json", asked)
}

/** The end of a text, from the beginning of a line on where that is possible. */
export function lastBytes(text: string, most: number): string {
	const bytes = Buffer.from(text)
	if (bytes.length <= most) return text
	const end = bytes.subarray(bytes.length - most).toString()
	const lineAt = end.indexOf("\n") + 1
	// Half a letter at the beginning is none.
	return lineAt > 0 && lineAt < end.length ? end.slice(lineAt) : end.replace(/^\uFFFD+/, "")
}

/** @throws {OperatorError} without the address, which may hold a key */
async function post(url: string, body: string, type: string, { timeoutMs }: Asked): Promise<string> {
	try {
		const response = await fetch(url, {
			...{ method: "POST", body, redirect: "manual" },
			headers: { "content-type": type, "user-agent": "comfyume" },
			signal: AbortSignal.timeout(timeoutMs),
		})
		const said = await firstBytes(response)
		if (response.ok) return said
		const { status } = response
		throw new OperatorError(
			status >= 300 && status < 400
				? `it redirects (HTTP status ${status}), and nothing is sent to where it leads`
				: `it answers with HTTP status ${status}`,
		)
	} catch (error) {
		if (error instanceof OperatorError) throw error
		if (error instanceof Error && error.name === "TimeoutError")
			throw new OperatorError(`no answer within ${timeoutMs / 1000} s`)
		const cause = error instanceof Error && error.cause !== undefined ? error.cause : error
		throw new OperatorError(codeOf(cause) ?? messageOf(cause).slice(0, 200))
	}
}

// Whatever it answers, it isn't gathered without end.
async function firstBytes(response: Response): Promise<string> {
	const reader = response.body?.getReader()
	let text = ""
	for (;;) {
		const { done = true, value } = (await reader?.read()) ?? {}
		if (done || value === undefined) return text
		text += Buffer.from(value).toString().slice(0, 200)
		if (text.length < 200) continue
		await reader?.cancel()
		return text.slice(0, 200)
	}
}
