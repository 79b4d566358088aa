// Reading from a bucket: what was asked for, what was announced, and what came must be the same.
import { Readable } from "node:stream"
import type { GetObjectCommandOutput } from "@aws-sdk/client-s3"
import { OperatorError } from "../errors.ts"
import { type GetOptions, ObjectChanged } from "./object-store.ts"
import type { Connection } from "./s3-connection.ts"
import { s3Problem, statusOf } from "./s3-errors.ts"

/** Asks for an object or a range of it. @throws {ObjectChanged} when it is no longer the one of `ifMatch`. */
export async function requestBytes(
	{ sdk, client }: Connection,
	{ bucket, key, range, ifMatch }: GetOptions & { bucket: string; key: string },
	signal: AbortSignal | undefined,
): Promise<GetObjectCommandOutput> {
	const command = new sdk.GetObjectCommand({
		Bucket: bucket,
		Key: key,
		...(range === undefined ? {} : { Range: `bytes=${range.first}-${range.last}` }),
		...(ifMatch === undefined ? {} : { IfMatch: ifMatch }),
	})
	try {
		return await client.send(command, signal === undefined ? {} : { abortSignal: signal })
	} catch (error) {
		if (statusOf(error) === 412) throw new ObjectChanged(key, error)
		throw error
	}
}

/** What the answer announces, after it was held against what was asked for. */
export function expectBytes(
	answer: GetObjectCommandOutput,
	{ range, ifMatch }: GetOptions,
): { body: Readable; sizeBytes: number } {
	const body = answer.Body as Readable
	try {
		const { ContentLength: sizeBytes, ContentRange: sent, ETag: etag } = answer
		if (sizeBytes === undefined || etag === undefined)
			throw s3Problem("ForeignAnswer", "no length or no ETag")
		// A service that ignores If-Match would hand out a mixture.
		if (ifMatch !== undefined && etag !== ifMatch) throw new ObjectChanged("the object")
		if (range === undefined) return { body, sizeBytes }
		const wanted = `bytes ${range.first}-${range.last}/`
		if (answer.$metadata.httpStatusCode !== 206)
			throw new OperatorError("asked for a range, the store sent the whole object")
		if (sent?.startsWith(wanted) !== true)
			throw new OperatorError(
				`asked for ${wanted.slice(0, -1)}, the store sent ${sent ?? "an unnamed range"}`,
			)
		if (sizeBytes !== range.last - range.first + 1)
			throw new OperatorError(`asked for ${wanted.slice(0, -1)}, the store announces ${sizeBytes} bytes`)
		return { body, sizeBytes }
	} catch (error) {
		body.destroy()
		throw error
	}
}

/** The body as a stream that fails unless exactly so many bytes come; `rename` words its failures. */
export function exactly(
	body: Readable,
	sizeBytes: number,
	rename: (error: unknown) => OperatorError,
): Readable {
	async function* counted() {
		let got = 0
		try {
			for await (const chunk of body as AsyncIterable<Buffer>) {
				got += chunk.length
				if (got > sizeBytes) break
				yield chunk
			}
		} catch (error) {
			throw rename(error)
		}
		if (got !== sizeBytes)
			throw rename(new OperatorError(`the store sent ${got} bytes instead of the ${sizeBytes} it announced`))
	}
	const stream = Readable.from(counted(), { objectMode: false, highWaterMark: 1 })
	stream.once("close", () => body.destroy())
	return stream
}
