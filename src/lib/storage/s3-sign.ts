// Requests signed by AWS Signature Version 4, for the threads that send them without the SDK.
import { createHash, createHmac } from "node:crypto"
import type { Secret } from "../secret.ts"
import type { HttpRequest } from "./byte-source.ts"

export type Signer = {
	endpoint: string
	region: string
	accessKeyId: Secret
	secretAccessKey: Secret
}

export type Unsigned = {
	method: "GET" | "PUT"
	bucket: string
	key: string
	query?: Readonly<Record<string, string>>
	/** In lower case; all of them are signed. */
	headers: Readonly<Record<string, string>>
	/** sha256 of the body in hex. */
	payloadDigest: string
}

export const emptyDigest = createHash("sha256").digest("hex")

/** Good for fifteen minutes, by the service's clock. Its headers hold a signature: they are never logged. */
export function signRequest(signer: Signer, unsigned: Unsigned, now: Date): HttpRequest {
	const url = new URL(signer.endpoint)
	const stamp = now.toISOString().replaceAll(/[-:]|\.\d+/g, "")
	const day = stamp.slice(0, 8)
	const base = url.pathname.replace(/\/$/, "")
	const path = `${base}/${[unsigned.bucket, ...unsigned.key.split("/")].map(encode).join("/")}`
	const query = Object.entries(unsigned.query ?? {})
		.map(([name, value]) => `${encode(name)}=${encode(value)}`)
		.sort()
		.join("&")
	const headers: Record<string, string> = {
		...unsigned.headers,
		host: url.host,
		"x-amz-content-sha256": unsigned.payloadDigest,
		"x-amz-date": stamp,
	}
	const names = Object.keys(headers).sort()
	const canonical = [
		unsigned.method,
		path,
		query,
		...names.map((name) => `${name}:${headers[name]?.trim().replaceAll(/ +/g, " ")}`),
		"",
		names.join(";"),
		unsigned.payloadDigest,
	].join("\n")
	const scope = `${day}/${signer.region}/s3/aws4_request`
	const toSign = ["AWS4-HMAC-SHA256", stamp, scope, createHash("sha256").update(canonical).digest("hex")]
	const key = [day, signer.region, "s3", "aws4_request"].reduce<string | Buffer>(
		(secret, part) => createHmac("sha256", secret).update(part).digest(),
		`AWS4${signer.secretAccessKey.reveal()}`,
	)
	const signature = createHmac("sha256", key).update(toSign.join("\n")).digest("hex")
	const credential = `Credential=${signer.accessKeyId.reveal()}/${scope}`
	return {
		url: `${url.origin}${path}${query === "" ? "" : `?${query}`}`,
		headers: {
			...headers,
			authorization: `AWS4-HMAC-SHA256 ${credential}, SignedHeaders=${names.join(";")}, Signature=${signature}`,
		},
	}
}

// S3 encodes each part of the path once, and more signs than JavaScript does.
const encode = (text: string) =>
	encodeURIComponent(text).replaceAll(
		/[!'()*]/g,
		(sign) => `%${sign.charCodeAt(0).toString(16).toUpperCase()}`,
	)
