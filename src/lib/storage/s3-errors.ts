// What an object store's refusals and failures mean to an operator: one table.
import { codeOf, type ExitCode, exitCodes, messageOf, OperatorError } from "../errors.ts"
import type { HttpFailure } from "./byte-source.ts"

export type S3Place = { name: string; endpoint: string; bucket: string }

type Meaning = { says: string; exitCode: ExitCode; hint?: string }

const { unreachable, refusedCredentials, incomplete } = exitCodes

const checkKeys = "check the access key ID and the secret of this bucket: comfyume config check"
const checkClock = "set this machine's clock: timedatectl set-ntp true; timedatectl"
const later = "the store is overloaded or down; run the same command again later"
const checkEndpoint = "check the endpoint: comfyume config show"

// Codes of S3 and R2, names that the SDK gives, Node's codes, and `HTTP <status>` for what has no code.
const meanings: Readonly<Record<string, Meaning>> = {
	InvalidAccessKeyId: {
		says: "there is no such access key ID",
		exitCode: refusedCredentials,
		hint: checkKeys,
	},
	SignatureDoesNotMatch: {
		says: "the signature is wrong: the secret does not belong to the access key ID",
		exitCode: refusedCredentials,
		hint: checkKeys,
	},
	Unauthorized: { says: "the credentials are not taken", exitCode: refusedCredentials, hint: checkKeys },
	ExpiredToken: { says: "the credentials have expired", exitCode: refusedCredentials, hint: checkKeys },
	InvalidToken: { says: "the token is not valid", exitCode: refusedCredentials, hint: checkKeys },
	AuthorizationHeaderMalformed: {
		says: "the store doesn't understand our signature (another region?)",
		exitCode: refusedCredentials,
		hint: checkEndpoint,
	},
	RequestTimeTooSkewed: {
		says: "this machine's clock is off by more than 15 minutes",
		exitCode: refusedCredentials,
		hint: checkClock,
	},
	RequestExpired: { says: "this machine's clock is off", exitCode: refusedCredentials, hint: checkClock },
	AccessDenied: {
		says: "the credentials are known and may not do this",
		exitCode: refusedCredentials,
		hint: "give the token the right for this bucket: dash.cloudflare.com, R2, API tokens",
	},
	NoSuchBucket: {
		says: "there is no such bucket",
		exitCode: incomplete,
		hint: "check the bucket's name: comfyume config show",
	},
	NoSuchKey: { says: "there is no such object", exitCode: incomplete },
	NoSuchUpload: {
		says: "the multipart upload is gone",
		exitCode: incomplete,
		hint: "run the same command again",
	},
	InvalidRange: { says: "the object is shorter than the range that was asked for", exitCode: incomplete },
	XAmzContentSHA256Mismatch: {
		says: "what arrived is not what was sent; the store took nothing",
		exitCode: incomplete,
		hint: "run the same command again; if it happens again, test this machine's memory and network",
	},
	BadDigest: {
		says: "what arrived has another checksum than what was sent; the store took nothing",
		exitCode: incomplete,
		hint: "run the same command again; if it happens again, test this machine's memory and network",
	},
	QuotaExceeded: { says: "no space left in the store", exitCode: exitCodes.noSpace },
	Redirect: {
		says: "the store answered with a redirect, which is never followed with credentials",
		exitCode: incomplete,
		hint: checkEndpoint,
	},
	HtmlAnswer: {
		says: "the endpoint answered with an HTML page, not S3",
		exitCode: unreachable,
		hint: `${checkEndpoint}; a proxy or a sign-in page of this network can stand in between`,
	},
	ForeignAnswer: { says: "the endpoint's answer is not S3", exitCode: unreachable, hint: checkEndpoint },
	Stalled: {
		says: "the transfer stood still",
		exitCode: unreachable,
		hint: "check this machine's network; run the same command again",
	},
	ConnectTimeout: { says: "no connection in time", exitCode: unreachable, hint: checkEndpoint },
	ENOTFOUND: { says: "there is no such host name", exitCode: unreachable, hint: checkEndpoint },
	EAI_AGAIN: { says: "the name server gives no answer", exitCode: unreachable, hint: "resolvectl status" },
	ECONNREFUSED: { says: "the connection is refused", exitCode: unreachable, hint: checkEndpoint },
	ECONNRESET: { says: "the connection was reset", exitCode: unreachable, hint: "run the same command again" },
	EPIPE: { says: "the connection was closed", exitCode: unreachable, hint: "run the same command again" },
	EHOSTUNREACH: { says: "there is no route to the host", exitCode: unreachable },
	ENETUNREACH: { says: "the network is unreachable", exitCode: unreachable },
	ETIMEDOUT: { says: "no answer in time", exitCode: unreachable },
	TLS: { says: "no secure connection", exitCode: unreachable, hint: `${checkEndpoint}; date` },
	"HTTP 401": { says: "the credentials are not taken", exitCode: refusedCredentials, hint: checkKeys },
	"HTTP 403": { says: "the store refuses this", exitCode: refusedCredentials, hint: checkKeys },
	"HTTP 404": { says: "there is no such thing", exitCode: incomplete, hint: checkEndpoint },
	"HTTP 429": { says: "too many requests; retry later", exitCode: unreachable, hint: later },
	"HTTP 503": { says: "the store is not available; retry later", exitCode: unreachable, hint: later },
	"HTTP 5xx": { says: "the store has a failure of its own; retry later", exitCode: unreachable, hint: later },
}

type Described = Error & { $metadata?: { httpStatusCode?: number; attempts?: number }; Code?: string }

/** An error of our own making, named as in the table. */
export function s3Problem(name: string, detail: string): Error {
	return Object.assign(new Error(detail), { name })
}

/** A failure of an exchange without the SDK, as the SDK would have thrown it. */
export function asIfSent({ message, code, status, attempts }: HttpFailure): Error {
	return Object.assign(s3Problem(code ?? "", message), {
		...(code !== undefined && { code }),
		$metadata: { attempts, ...(status !== undefined && { httpStatusCode: status }) },
	})
}

/** The status of the answer that an error came with. */
export function statusOf(error: unknown): number | undefined {
	return error instanceof Error ? (error as Described).$metadata?.httpStatusCode : undefined
}

/**
 * Turns what the SDK or Node threw into an error for the operator.
 * @param doing what was attempted, as in `storing a/b`
 */
export function s3Error(error: unknown, doing: string, place: S3Place, signal?: AbortSignal): OperatorError {
	if (error instanceof OperatorError) return error
	const where = `${doing} in ${place.name} (${place.endpoint}, bucket ${place.bucket})`
	if (signal?.aborted === true) return new OperatorError(`${where}: stopped`, { cause: error })
	const meaning = meanings[nameOf(error)]
	const tries = error instanceof Error ? ((error as Described).$metadata?.attempts ?? 1) : 1
	const often = tries > 1 ? ` (${tries} attempts)` : ""
	if (meaning === undefined) {
		const status = statusOf(error)
		return new OperatorError(`${where}: ${status === undefined ? "" : `${status} `}${wordsOf(error)}${often}`)
	}
	const detail = detailed.has(nameOf(error)) ? `: ${wordsOf(error)}` : ""
	return new OperatorError(`${where}: ${meaning.says}${detail}${often}`, {
		exitCode: meaning.exitCode,
		cause: error,
		...(meaning.hint === undefined ? {} : { hint: meaning.hint }),
	})
}

const detailed = new Set([
	"TLS",
	"Stalled",
	"Redirect",
	"HtmlAnswer",
	"ForeignAnswer",
	"HTTP 5xx",
	"ConnectTimeout",
])

function nameOf(error: unknown): string {
	const code = codeOf(error) ?? (error instanceof Error ? ((error as Described).Code ?? "") : "")
	const name = error instanceof Error ? error.name : ""
	for (const candidate of [name, code]) if (candidate in meanings) return candidate
	if (/^ERR_(TLS|SSL)|CERT|^EPROTO|SELF_SIGNED|UNABLE_TO_/.test(code)) return "TLS"
	// undici's and Node's aggregate of the attempts on several addresses.
	if (error instanceof AggregateError && error.errors.length > 0) return nameOf(error.errors[0])
	if (name === "TimeoutError") return "ConnectTimeout"
	const status = statusOf(error)
	if (status === undefined) return name
	if (status >= 300 && status < 400) return "Redirect"
	if (`HTTP ${status}` in meanings) return `HTTP ${status}`
	return status >= 500 ? "HTTP 5xx" : name
}

// A server's words can hold what was sent to it (R2 and AWS answer a bad signature with the key ID and the text that
// was signed), so only the code and the first short sentence are shown.
function wordsOf(error: unknown): string {
	const name = error instanceof Error && error.name !== "Error" ? `${error.name}: ` : ""
	return `${name}${messageOf(error).slice(0, 200)}`
}
