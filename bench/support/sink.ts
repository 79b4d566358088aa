// Takes uploads, forgets their bytes, and answers what a client wants to hear: the same for everybody who is measured.
import { createServer } from "node:http"

type Kept = { sizeBytes: number; headers: Record<string, string> }
const objects = new Map<string, Kept>()
const uploads = new Map<string, Kept>()
let last = 0

const server = createServer(async (request, response) => {
	const url = new URL(request.url ?? "/", "http://sink")
	const { searchParams: query, pathname: key } = url
	let bytes = 0
	const body: Buffer[] = []
	for await (const chunk of request as AsyncIterable<Buffer>) {
		bytes += chunk.length
		if (request.method === "POST") body.push(chunk)
	}
	const meta = Object.fromEntries(
		Object.entries(request.headers).filter(([name]) => name.startsWith("x-amz-meta-")),
	) as Record<string, string>
	const xml = (text: string) => response.writeHead(200, { "content-type": "application/xml" }).end(text)
	const uploadId = query.get("uploadId") ?? ""
	if (request.method === "HEAD") {
		const object = objects.get(key)
		if (object === undefined) return response.writeHead(404).end()
		const { sizeBytes, headers } = object
		const times = { "last-modified": new Date().toUTCString(), etag: '"sink-1"' }
		return response.writeHead(200, { "content-length": sizeBytes, ...times, ...headers }).end()
	}
	if (request.method === "PUT") {
		const upload = uploads.get(uploadId)
		if (upload !== undefined) upload.sizeBytes += bytes
		else objects.set(key, { sizeBytes: bytes, headers: meta })
		return response.writeHead(200, { etag: '"sink"', "content-length": 0 }).end()
	}
	if (request.method === "POST" && query.has("uploads")) {
		const id = `upload-${++last}`
		uploads.set(id, { sizeBytes: 0, headers: meta })
		return xml(`<InitiateMultipartUploadResult><UploadId>${id}</UploadId></InitiateMultipartUploadResult>`)
	}
	if (request.method === "POST" && uploadId !== "") {
		const upload = uploads.get(uploadId) ?? { sizeBytes: 0, headers: {} }
		const crc64 = request.headers["x-amz-checksum-crc64nvme"]
		const sum = typeof crc64 === "string" ? { "x-amz-checksum-crc64nvme": crc64 } : {}
		objects.set(key, { ...upload, headers: { ...upload.headers, ...sum } })
		return xml(`<CompleteMultipartUploadResult><ETag>"sink-1"</ETag></CompleteMultipartUploadResult>`)
	}
	// Whoever forgets: the next run puts the same key again.
	if (request.method === "DELETE") {
		objects.delete(key)
		return response.writeHead(204).end()
	}
	const bucket = key.split("/")[1] ?? ""
	return xml(
		`<ListBucketResult><Name>${bucket}</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>`,
	)
})
server.listen(Number(process.argv[2]), "127.0.0.1")
