// AWS Signature Version 4 as a server checks it: every header that was signed, the query, the path, and the digest
// of the payload.
import { createHash, createHmac, timingSafeEqual } from "node:crypto"
import type { IncomingMessage } from "node:http"
import { S3Failure } from "./xml.ts"

const longestSkewMs = 15 * 60 * 1000

type Keys = { accessKeyId: string; secretAccessKey: string }

/** What `x-amz-content-sha256` says of the body. */
export type PayloadClaim =
	| { kind: "digest"; sha256: string }
	| { kind: "unsigned" }
	| { kind: "unsigned-trailer" }

/**
 * Verifies who sent a request.
 * @throws {S3Failure} with the code that S3 answers.
 */
export function verifySignature<K extends Keys>(
	request: IncomingMessage,
	{
		credentials,
		region,
		now,
		allowUnsigned,
	}: {
		credentials: ReadonlyMap<string, K>
		region: string
		now: Date
		allowUnsigned: boolean
	},
): { credential: K; payload: PayloadClaim } {
	const authorization = request.headers.authorization
	if (authorization === undefined) throw new S3Failure(403, "AccessDenied", "Requests must be signed")
	const match =
		/^AWS4-HMAC-SHA256 Credential=([^/,\s]+)\/(\d{8})\/([^/,\s]+)\/s3\/aws4_request,\s*SignedHeaders=([^,\s]+),\s*Signature=([0-9a-f]{64})$/.exec(
			authorization,
		)
	if (match === null)
		throw new S3Failure(400, "AuthorizationHeaderMalformed", "The authorization header is malformed")
	const [, accessKeyId = "", day = "", itsRegion = "", signedHeaders = "", signature = ""] = match
	const credential = credentials.get(accessKeyId)
	if (credential === undefined)
		throw new S3Failure(
			403,
			"InvalidAccessKeyId",
			"The access key ID you provided does not exist in our records.",
		)
	if (itsRegion !== region)
		throw new S3Failure(
			400,
			"AuthorizationHeaderMalformed",
			`The region '${itsRegion}' is wrong; expecting '${region}'`,
		)

	const date = header(request, "x-amz-date")
	if (!/^\d{8}T\d{6}Z$/.test(date) || !date.startsWith(day))
		throw new S3Failure(403, "AccessDenied", "x-amz-date is missing or is not the day of the credential")
	const sentAt = Date.parse(date.replace(/^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/, "$1-$2-$3T$4:$5:$6Z"))
	const names = signedHeaders.split(";")
	requireSigned(request, names)
	const payload = payloadClaim(header(request, "x-amz-content-sha256"), allowUnsigned)

	const canonical = [
		request.method ?? "",
		canonicalPath(request),
		canonicalQuery(request),
		...names.map((name) => `${name}:${header(request, name).trim().replace(/ +/g, " ")}`),
		"",
		signedHeaders,
		header(request, "x-amz-content-sha256"),
	].join("\n")
	const scope = `${day}/${region}/s3/aws4_request`
	const toSign = ["AWS4-HMAC-SHA256", date, scope, createHash("sha256").update(canonical).digest("hex")].join(
		"\n",
	)
	const key = [day, region, "s3", "aws4_request"].reduce<Buffer | string>(
		(secret, part) => createHmac("sha256", secret).update(part).digest(),
		`AWS4${credential.secretAccessKey}`,
	)
	const expected = createHmac("sha256", key).update(toSign).digest()
	if (!timingSafeEqual(expected, Buffer.from(signature, "hex")))
		throw new S3Failure(
			403,
			"SignatureDoesNotMatch",
			"The request signature we calculated does not match the signature you provided.",
		)
	if (Math.abs(now.getTime() - sentAt) > longestSkewMs)
		throw new S3Failure(
			403,
			"RequestTimeTooSkewed",
			"The difference between the request time and the server's time is too large.",
		)
	return { credential, payload }
}

// A header that says something about the request and is not signed could be changed on the way.
function requireSigned(request: IncomingMessage, names: readonly string[]): void {
	if ([...names].sort().join() !== names.join())
		throw new S3Failure(400, "AuthorizationHeaderMalformed", "SignedHeaders must be sorted")
	const needed = Object.keys(request.headers).filter(
		(name) => name.startsWith("x-amz-") || name === "content-md5",
	)
	for (const name of ["host", ...needed])
		if (!names.includes(name))
			throw new S3Failure(403, "AccessDenied", `There were headers not signed: ${name}`)
}

function payloadClaim(claim: string, allowUnsigned: boolean): PayloadClaim {
	if (/^[0-9a-f]{64}$/.test(claim)) return { kind: "digest", sha256: claim }
	if (allowUnsigned && claim === "UNSIGNED-PAYLOAD") return { kind: "unsigned" }
	if (allowUnsigned && claim === "STREAMING-UNSIGNED-PAYLOAD-TRAILER") return { kind: "unsigned-trailer" }
	throw new S3Failure(
		claim.startsWith("STREAMING-") ? 501 : 400,
		claim.startsWith("STREAMING-") ? "NotImplemented" : "InvalidRequest",
		`x-amz-content-sha256 must be the digest of the payload here, not ${claim === "" ? "absent" : claim}`,
	)
}

function header(request: IncomingMessage, name: string): string {
	const value = request.headers[name]
	return Array.isArray(value) ? value.join(",") : (value ?? "")
}

// S3 encodes each part of the path once, and leaves the slashes.
function canonicalPath(request: IncomingMessage): string {
	const [path = "/"] = (request.url ?? "/").split("?")
	return path
		.split("/")
		.map((part) => encode(decodeURIComponent(part)))
		.join("/")
}

function canonicalQuery(request: IncomingMessage): string {
	const query = (request.url ?? "").split("?")[1] ?? ""
	return query
		.split("&")
		.filter((pair) => pair !== "")
		.map((pair) => {
			const [name = "", ...value] = pair.split("=")
			return `${encode(decodeURIComponent(name))}=${encode(decodeURIComponent(value.join("=")))}`
		})
		.sort()
		.join("&")
}

const encode = (text: string) =>
	encodeURIComponent(text).replace(/[!'()*]/g, (char) => `%${char.charCodeAt(0).toString(16).toUpperCase()}`)
