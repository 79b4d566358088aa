// A publisher of models as Hugging Face is one: an address per file, which redirects to a storage on another host by a
// signed link that expires; its refusals of those who may not read; and a log of every header that each host received.
import { createHash, createHmac } from "node:crypto"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import type { IncomingMessage, ServerResponse } from "node:http"
import { createServer, type Server } from "node:https"
import type { AddressInfo } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { getCACertificates, setDefaultCACertificates } from "node:tls"
import { run } from "./run.ts"

export type Published = {
	/** `owner/name/resolve/main/<path>`, without a leading slash. */
	path: string
	content: Buffer
	/** Only for tokens whose account has accepted the licence. */
	gated?: boolean
	/** Small files are not in the storage: the publisher gives them itself. */
	direct?: boolean
	/** What the publisher says of it besides the truth. */
	says?: { digest?: string; sizeBytes?: number }
}

export type Seen = { path: string; headers: IncomingMessage["headers"]; status: number; bytesOut: number }

/** What the storage, or the publisher, does to requests from now on; undefined for what is right. */
export type Trouble =
	| { on: "storage" | "publisher"; status: number; retryAfterSeconds?: number; html?: boolean }
	/** The connection is cut after so many bytes of an answer. */
	| { on: "storage"; cutAfterBytes: number }
	| { on: "storage"; ignores: "ranges" | "conditions" }
	| { on: "publisher"; redirect: string }

export type HuggingFace = {
	/** `https://127.0.0.1:<port>`, what the token belongs to. */
	readonly origin: string
	readonly storageOrigin: string
	/** For other processes: NODE_EXTRA_CA_CERTS. */
	readonly certificateFile: string
	publish(file: Published): { url: string; digest: string }
	/** Every link that was given out so far is refused from now on. */
	expireLinks(): void
	/** So many requests are hit; all without it. */
	trouble(trouble: Trouble, times?: number): void
	readonly publisherLog: readonly Seen[]
	readonly storageLog: readonly Seen[]
	[Symbol.asyncDispose](): Promise<void>
}

const linkKey = "a key that only the publisher and its storage know"
const htmlPage = "<!DOCTYPE html><html><head><title>Sorry</title></head><body>We are down.</body></html>"

/**
 * @param tokens each with whether its account has accepted the licences
 */
export async function startHuggingFace(tokens: Readonly<Record<string, boolean>>): Promise<HuggingFace> {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-hub-"))
	const [certificateFile, keyFile] = [join(directory, "certificate.pem"), join(directory, "key.pem")]
	await run("openssl", [
		...["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"],
		...["-subj", "/CN=hub.example.test", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"],
		...["-keyout", keyFile, "-out", certificateFile],
	])
	const certificate = readFileSync(certificateFile, "utf8")
	const before = getCACertificates("default")
	setDefaultCACertificates([...before, certificate])

	const files = new Map<string, Published>()
	const blobs = new Map<string, Buffer>()
	const troubles: { trouble: Trouble; left: number }[] = []
	const logs = { publisher: [] as Seen[], storage: [] as Seen[] }
	let generation = 0

	const troubleOn = (on: Trouble["on"]): Trouble | undefined => {
		const found = troubles.find(({ trouble, left }) => trouble.on === on && left > 0)
		if (found !== undefined) found.left--
		return found?.trouble
	}
	const sign = (digest: string) =>
		createHmac("sha256", linkKey).update(`${digest} ${generation}`).digest("hex").slice(0, 32)

	const answer = (
		response: ServerResponse,
		status: number,
		headers: Record<string, string>,
		body: Buffer | string = "",
	) => {
		response.writeHead(status, { "content-length": String(Buffer.byteLength(body)), ...headers })
		response.end(body)
	}
	const refuse = (response: ServerResponse, trouble: Extract<Trouble, { status: number }>) => {
		const { status, retryAfterSeconds, html = false } = trouble
		const retry = retryAfterSeconds === undefined ? {} : { "retry-after": String(retryAfterSeconds) }
		const type = html ? "text/html; charset=utf-8" : "text/plain"
		answer(response, status, { "content-type": type, ...retry }, html ? htmlPage : "no")
	}
	/** The whole, or the range that was asked for; `If-Range` gives the whole when it is another file by now. */
	const give = (
		request: IncomingMessage,
		response: ServerResponse,
		content: Buffer,
		trouble: Trouble | undefined,
	) => {
		const etag = `"${createHash("md5").update(content).digest("hex")}"`
		const headers = { "content-type": "application/octet-stream", "accept-ranges": "bytes", etag }
		const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "") ?? []
		const condition = request.headers["if-range"]
		const ignored = trouble !== undefined && "ignores" in trouble ? trouble.ignores : undefined
		const holds = condition === undefined || condition === etag || ignored === "conditions"
		if (from === undefined || !holds || ignored === "ranges") return answer(response, 200, headers, content)
		const [first, last] = [Number(from), Math.min(Number(to), content.length - 1)]
		if (first >= content.length)
			return answer(response, 416, { "content-range": `bytes */${content.length}` })
		const body = content.subarray(first, last + 1)
		const ranges = { ...headers, "content-range": `bytes ${first}-${last}/${content.length}` }
		if (trouble === undefined || !("cutAfterBytes" in trouble)) return answer(response, 206, ranges, body)
		response.writeHead(206, { "content-length": String(body.length), ...ranges })
		response.write(body.subarray(0, trouble.cutAfterBytes), () => response.destroy())
	}

	const publisher = (request: IncomingMessage, response: ServerResponse) => {
		const trouble = troubleOn("publisher")
		if (trouble !== undefined && "status" in trouble) return refuse(response, trouble)
		if (trouble !== undefined && "redirect" in trouble)
			return answer(response, 302, { location: trouble.redirect })
		const file = files.get((request.url ?? "").slice(1))
		const token = /^Bearer (.+)$/.exec(request.headers.authorization ?? "")?.[1]
		if (request.headers.authorization !== undefined && !(token !== undefined && token in tokens))
			return answer(response, 401, {}, "Invalid credentials in Authorization header")
		if (file === undefined) {
			// What doesn't exist and what is private look the same to strangers.
			if (token === undefined) return answer(response, 401, { "x-error-code": "RepoNotFound" })
			return answer(response, 404, { "x-error-code": "EntryNotFound" })
		}
		if (file.gated === true && token === undefined)
			return answer(response, 401, { "x-error-code": "GatedRepo" }, "Access to this model is restricted.")
		if (file.gated === true && tokens[token ?? ""] !== true)
			return answer(response, 403, { "x-error-code": "GatedRepo" }, "You are not in the authorized list.")
		if (file.direct === true) return give(request, response, file.content, undefined)
		const digest = sha256(file.content)
		answer(response, 302, {
			location: `${storageOrigin}/blobs/${digest}?Expires=${generation}&Signature=${sign(digest)}`,
			"x-linked-etag": `"${file.says?.digest ?? digest}"`,
			"x-linked-size": String(file.says?.sizeBytes ?? file.content.length),
			"x-repo-commit": "0123456789abcdef0123456789abcdef01234567",
			etag: '"0123"',
		})
	}

	const storage = (request: IncomingMessage, response: ServerResponse) => {
		const trouble = troubleOn("storage")
		if (trouble !== undefined && "status" in trouble) return refuse(response, trouble)
		const url = new URL(request.url ?? "/", storageOrigin)
		const digest = url.pathname.replace("/blobs/", "")
		// As S3 does: a signed link and a token are one too many.
		if (request.headers.authorization !== undefined)
			return answer(response, 400, {}, "<Code>InvalidArgument</Code>")
		if (url.searchParams.get("Signature") !== sign(digest))
			return answer(response, 403, { "content-type": "application/xml" }, "<Code>AccessDenied</Code>")
		const content = blobs.get(digest)
		if (content === undefined) return answer(response, 404, {}, "<Code>NoSuchKey</Code>")
		give(request, response, content, trouble)
	}

	const listen = async (
		handle: (request: IncomingMessage, response: ServerResponse) => void,
		log: Seen[],
	): Promise<{ server: Server; port: number }> => {
		const server = createServer({ cert: certificate, key: readFileSync(keyFile) }, (request, response) => {
			response.once("close", () => {
				const [path = ""] = (request.url ?? "").split("?")
				log.push({ path, headers: request.headers, status: response.statusCode, bytesOut: bytesOf(response) })
			})
			handle(request, response)
		})
		await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
		return { server, port: (server.address() as AddressInfo).port }
	}
	const published = await listen(publisher, logs.publisher)
	const stored = await listen(storage, logs.storage)
	const origin = `https://127.0.0.1:${published.port}`
	// Another name: another host to whoever sends a token.
	const storageOrigin = `https://localhost:${stored.port}`

	return {
		origin,
		storageOrigin,
		certificateFile,
		publish: (file) => {
			files.set(file.path, file)
			const digest = sha256(file.content)
			blobs.set(digest, file.content)
			return { url: `${origin}/${file.path}`, digest }
		},
		expireLinks: () => {
			generation++
		},
		trouble: (trouble, times = Number.POSITIVE_INFINITY) => {
			troubles.push({ trouble, left: times })
		},
		publisherLog: logs.publisher,
		storageLog: logs.storage,
		async [Symbol.asyncDispose]() {
			setDefaultCACertificates(before)
			for (const { server } of [published, stored]) {
				server.closeAllConnections()
				await new Promise((resolve) => server.close(resolve))
			}
			rmSync(directory, { recursive: true })
		},
	}
}

const sha256 = (bytes: Buffer) => createHash("sha256").update(bytes).digest("hex")

const bytesOf = (response: ServerResponse) => Number(response.getHeader("content-length") ?? 0)
