// A browser sends its passwords and cookies along whatever page it was that asked. So what changes something, or listens
// to events, must come from a page of ours when it is the browser's word alone that lets it in.
import type { IncomingHttpHeaders } from "node:http"

const reading = ["GET", "HEAD", "OPTIONS"]

/**
 * Whether a request comes from a stranger's page and asks for more than reading.
 * @param headers as the proxy passed them on: `host` and `x-forwarded-proto` are its own
 * @param known origins that may ask all the same; `*` counts for nothing here
 */
export function isFromStranger(
	method: string,
	headers: IncomingHttpHeaders,
	known: ReadonlySet<string>,
): boolean {
	if (reading.includes(method) && headers.upgrade === undefined) return false
	const { origin } = headers
	if (origin !== undefined && origin !== "*" && known.has(origin)) return false
	// Clients that are no browsers say neither.
	return headers["sec-fetch-site"] === "cross-site" || (origin !== undefined && !isOwn(origin, headers))
}

function isOwn(origin: string, { host = "", ...headers }: IncomingHttpHeaders): boolean {
	if (!URL.canParse(origin) || !URL.canParse(`http://${host}`)) return false
	const theirs = new URL(origin)
	if (headers["x-forwarded-proto"] === "https" && theirs.protocol !== "https:") return false
	// nginx passes on its name without the port.
	return /:\d+$/.test(host) ? theirs.host === host : theirs.hostname === new URL(`http://${host}`).hostname
}
