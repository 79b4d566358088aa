// What keeps the objects of an R2 bucket from being deleted: its lock rules. S3's API doesn't show them, Cloudflare's own
// does: GET /accounts/<id>/r2/buckets/<bucket>/lock.
import { z } from "zod"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import type { Jurisdiction } from "../formats/r2-endpoint.ts"
import type { Secret } from "../secret.ts"

/** One rule: what it covers, and for how long. */
export type LockRule = {
	name: string
	/** Keys that begin with it; empty: all. */
	prefix: string
	enabled: boolean
	/** Since an object was stored; until a date; for ever. */
	lasts: { kind: "seconds"; seconds: number } | { kind: "until"; date: Date } | { kind: "always" }
}

const conditionSchema = z.discriminatedUnion("type", [
	z.object({ type: z.literal("Age"), maxAgeSeconds: z.number() }),
	z.object({ type: z.literal("Date"), date: z.iso.datetime({ offset: true }) }),
	z.object({ type: z.literal("Indefinite") }),
])

const ruleSchema = z.object({
	id: z.string(),
	enabled: z.boolean(),
	prefix: z.string().default(""),
	condition: conditionSchema,
})

const answerSchema = z.object({
	success: z.literal(true),
	result: z.object({ rules: z.array(ruleSchema).default([]) }),
})

const timeoutMs = 8_000

export type LockQuestion = {
	/** As in `https://api.cloudflare.com/client/v4`. */
	api: string
	token: Secret
	accountId: string
	bucket: string
	jurisdiction: Jurisdiction
	signal: AbortSignal
}

/**
 * Asks for a bucket's lock rules.
 * @throws {OperatorError} (6) when the token may not read them; (3) when there is no such bucket in this jurisdiction, or
 *   the answer isn't Cloudflare's; (4) without a network
 */
export async function readLockRules(question: LockQuestion): Promise<LockRule[]> {
	const { bucket, jurisdiction } = question
	const { status, body } = await ask(question)
	if (status === 401 || status === 403 || status === 400)
		throw new OperatorError(
			`Cloudflare doesn't let CLOUDFLARE_API_TOKEN read the lock of ${bucket} (HTTP ${status})`,
			{
				exitCode: exitCodes.refusedCredentials,
				hint: "make a token with the permission Workers R2 Storage: Read for this account, and set CLOUDFLARE_API_TOKEN",
			},
		)
	if (status === 404)
		throw new OperatorError(`the account has no bucket ${bucket} with the jurisdiction ${jurisdiction}`, {
			hint: "compare bucket, endpoint and jurisdiction in comfyume.yaml with the dashboard",
		})
	const parsed = answerSchema.safeParse(body)
	if (status !== 200 || !parsed.success)
		throw new OperatorError(`Cloudflare's answer on the lock of ${bucket} makes no sense (HTTP ${status})`, {
			exitCode: status >= 500 || status === 429 ? exitCodes.unreachable : exitCodes.incomplete,
			hint: "try again in a few minutes",
		})
	return parsed.data.result.rules.map(({ id, enabled, prefix, condition }) => ({
		name: id,
		prefix,
		enabled,
		lasts:
			condition.type === "Age"
				? { kind: "seconds", seconds: condition.maxAgeSeconds }
				: condition.type === "Date"
					? { kind: "until", date: new Date(condition.date) }
					: { kind: "always" },
	}))
}

async function ask({ api, token, accountId, bucket, jurisdiction, signal }: LockQuestion) {
	try {
		const response = await fetch(
			`${api}/accounts/${accountId}/r2/buckets/${encodeURIComponent(bucket)}/lock`,
			{
				headers: { authorization: `Bearer ${token.reveal()}`, "cf-r2-jurisdiction": jurisdiction },
				// The token must not go along to wherever a redirect leads.
				redirect: "manual",
				signal: AbortSignal.any([signal, AbortSignal.timeout(timeoutMs)]),
			},
		)
		const body: unknown = await response.json().catch(() => undefined)
		return { status: response.status, body }
	} catch (error) {
		if (signal.aborted) throw error
		const cause = error instanceof Error && error.cause !== undefined ? error.cause : error
		throw new OperatorError(`Cloudflare's API can't be reached: ${messageOf(cause)}`, {
			exitCode: exitCodes.unreachable,
			hint: `curl -sS ${api}/ips`,
			cause: error,
		})
	}
}

/** Whether a rule keeps what is stored under a prefix now. Ends with a slash, or is empty for all. */
export function covers({ enabled, prefix, lasts }: LockRule, stored: string, now: Date): boolean {
	return enabled && stored.startsWith(prefix) && (lasts.kind !== "until" || lasts.date > now)
}
