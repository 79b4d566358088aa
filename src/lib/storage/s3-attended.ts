// A connection for questions that somebody waits for: few attempts, short patience.
import type { Secret } from "../secret.ts"
import type { ConnectionOptions } from "./s3-connection.ts"

export type Attended = {
	/** What messages call it. */
	name: string
	endpoint: string
	bucket: string
	region: string
	accessKeyId: Secret
	secretAccessKey: Secret
	signal: AbortSignal
}

/** Within ten seconds there is an answer, or a reason why not. */
export const attendedLimits = {
	attempts: 2,
	connectTimeoutMs: 4_000,
	stallMs: 5_000,
	retryDelayMs: 300,
} as const

export const attended = ({
	endpoint,
	region,
	accessKeyId,
	secretAccessKey,
}: Attended): ConnectionOptions => ({
	...{ endpoint, region, accessKeyId, secretAccessKey },
	connectTimeoutMs: attendedLimits.connectTimeoutMs,
	stallMs: attendedLimits.stallMs,
	leastBytes: 1,
	retries: {
		attempts: attendedLimits.attempts,
		baseDelayMs: attendedLimits.retryDelayMs,
		longestDelayMs: 2_000,
		random: Math.random,
	},
})
