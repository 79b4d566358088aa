// One block of a transfer, in a worker: read or fetched, hashed, and written where it belongs, chunk by chunk.
import { createHash, type Hash } from "node:crypto"
import { constants, openSync, write } from "node:fs"
import type { MessagePort } from "node:worker_threads"
import { bookBytes, type Control, countBytes, isStopped } from "./control.ts"
import { ExchangeFailed } from "./exchange-failed.ts"
import { readAhead, stoppedError } from "./hash-job.ts"
import { type Exchange, type HttpConnection, type HttpHead, httpConnection } from "./http-client.ts"
import type { Jobs } from "./worker-pool.ts"

type Input = Jobs["block"]["input"]

// Kept open for the thread's life: closing a file on NFS waits for all that was written. They end with the thread.
const openFiles = new Map<string, number>()

/** The file's number, the same for all jobs of this thread. */
export function fileFor(path: string, flags: number): number {
	const key = `${flags} ${path}`
	const fd = openFiles.get(key) ?? openSync(path, flags)
	openFiles.set(key, fd)
	return fd
}

const connections = new Map<number, HttpConnection>()

function connectionOf(lane: number): HttpConnection {
	const connection = connections.get(lane) ?? httpConnection()
	connections.set(lane, connection)
	return connection
}

/** sha256 of the block as it came; with a `target` it is written there, at the place it has in the source. */
export async function moveBlock(input: Input): Promise<Jobs["block"]["output"]> {
	const { from, first, last, target, control, counted } = input
	const wanted = last - first + 1
	const hash = createHash("sha256")
	const fd = target === undefined ? undefined : fileFor(target, constants.O_RDWR)
	let done = 0
	const take = async (chunk: Buffer) => {
		if (isStopped(control)) throw stoppedError()
		const at = first + done
		done += chunk.length
		if (done > wanted) throw new ExchangeFailed(`more than the ${wanted} bytes asked for`)
		hash.update(chunk)
		if (fd !== undefined)
			await writeWhole(fd, chunk, at).catch((error: Error) => {
				throw Object.assign(error, { target: true as const })
			})
		if (!counted) return
		countBytes(control, chunk.length)
		await keepPace(control, chunk.length, input.limitBytesPerSecond)
	}
	try {
		if (from.kind === "file")
			for await (const chunk of readAhead(fileFor(from.path, constants.O_RDONLY), first, last + 1, control))
				await take(chunk)
		else if (from.kind === "http") await fetchBlock(from, input, take)
		else await receiveBlock(from.port, take)
		if (done !== wanted) throw new ExchangeFailed(`${done} bytes came instead of ${wanted}`)
	} catch (error) {
		if (counted) countBytes(control, -done)
		throw error
	}
	return { digest: hash.digest("hex") }
}

// Hashes of files that grow: fed stretch by stretch, in order.
const growing = new Map<number, Hash>()

/** Goes on with a hash over a file's next stretch. */
export async function extendHash({
	hash: id,
	path,
	first,
	last,
	control,
}: Jobs["extend"]["input"]): Promise<void> {
	const hash = growing.get(id) ?? createHash("sha256")
	growing.set(id, hash)
	let done = 0
	for await (const chunk of readAhead(fileFor(path, constants.O_RDONLY), first, last + 1, control)) {
		hash.update(chunk)
		done += chunk.length
	}
	if (done !== last - first + 1) throw new Error("the file became shorter while it was read")
}

/** Ends a growing hash, and gives it in hex. */
export async function finishHash({ hash: id }: Jobs["finish"]["input"]): Promise<string> {
	const hash = growing.get(id) ?? createHash("sha256")
	growing.delete(id)
	return hash.digest("hex")
}

async function fetchBlock(
	{ request, etag, limits }: Extract<Input["from"], { kind: "http" }>,
	{ lane, first, last }: Input,
	take: (chunk: Buffer) => Promise<void>,
): Promise<void> {
	const exchange = {
		...request,
		...limits,
		method: "GET" as const,
		onHead: (head: HttpHead) => expectRange(head, { first, last, etag }),
		onChunk: take,
	}
	await exchangeOn(lane, () => exchange)
}

/** An exchange on the lane's connection; once more where the other side had closed it while it idled. */
export async function exchangeOn(lane: number, exchange: () => Exchange): Promise<HttpHead> {
	const connection = connectionOf(lane)
	return await connection.exchange(exchange()).catch((error: { code?: string }) => {
		if (error.code === "ERR_IDLE_CLOSED") return connection.exchange(exchange())
		throw error
	})
}

function expectRange(
	{ status, headers }: HttpHead,
	{ first, last, etag }: { first: number; last: number; etag: string | undefined },
): number {
	if (status !== 206 && /^text\/html/i.test(headers.get("content-type") ?? ""))
		throw new ExchangeFailed(`a page with status ${status}`, { code: "HtmlAnswer" })
	if (status !== 206) throw new ExchangeFailed("asked for a range, it sent the whole", { code: "WrongRange" })
	const range = headers.get("content-range") ?? "an unnamed range"
	if (!range.startsWith(`bytes ${first}-${last}/`))
		throw new ExchangeFailed(`asked for bytes ${first}-${last}, it sent ${range}`, { code: "WrongRange" })
	// A service that ignores If-Match would hand out a mixture.
	const itsEtag = headers.get("etag")
	if (etag !== undefined && itsEtag !== undefined && itsEtag !== etag)
		throw new ExchangeFailed("it is another object by now", { status: 412 })
	const length = Number(headers.get("content-length") ?? Number.NaN)
	if (length !== last - first + 1)
		throw new ExchangeFailed(`asked for ${last - first + 1} bytes, it announces ${length}`, {
			code: "WrongRange",
		})
	return length
}

/** Chunks from another thread; each is acknowledged when its place is free again. */
async function receiveBlock(port: MessagePort, take: (chunk: Buffer) => Promise<void>): Promise<void> {
	await new Promise<void>((resolve, reject) => {
		port.on("message", (chunk: Uint8Array | undefined) => {
			if (chunk === undefined) return resolve()
			take(Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength)).then(
				() => port.postMessage("next"),
				reject,
			)
		})
		port.on("close", () => reject(stoppedError()))
	}).finally(() => port.close())
}

async function writeWhole(fd: number, chunk: Buffer, at: number): Promise<void> {
	for (let done = 0; done < chunk.length; )
		done += await new Promise<number>((resolve, reject) => {
			write(fd, chunk, done, chunk.length - done, at + done, (error, written) =>
				error === null ? resolve(written) : reject(error),
			)
		})
}

/** Waits as long as a limit on the bandwidth wants it. */
export async function keepPace(control: Control, bytes: number, limit: number | undefined): Promise<void> {
	if (limit === undefined) return
	const waitMs = bookBytes(control, bytes, limit, performance.timeOrigin + performance.now())
	if (waitMs > 0) await new Promise((resolve) => setTimeout(resolve, waitMs))
}
