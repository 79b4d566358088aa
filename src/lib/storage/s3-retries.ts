// When a request to an object store is sent again, and after how long.

export type RetryLimits = {
	/** How often one request is sent at most. */
	attempts: number
	/** The first pause is up to this long; each further one up to twice as long. */
	baseDelayMs: number
	/** No pause is longer. A server that asks for more (Retry-After) is not waited for: the operator is told. */
	longestDelayMs: number
	/** Between 0 and 1. */
	random: () => number
}

type Token = { getRetryCount(): number; getRetryDelay(): number }
type RetryInfo = { errorType: string; error?: unknown; retryAfterHint?: Date }

/** The SDK's standard mode with limits of our own: full jitter, Retry-After honoured, refusals never repeated. */
export function retryStrategy({ attempts, baseDelayMs, longestDelayMs, random }: RetryLimits) {
	const token = (count: number, delayMs: number): Token => ({
		getRetryCount: () => count,
		getRetryDelay: () => delayMs,
	})
	return {
		acquireInitialRetryToken: async () => token(0, 0),
		refreshRetryTokenForRetry: async (last: Token, { errorType, error, retryAfterHint }: RetryInfo) => {
			const count = last.getRetryCount() + 1
			if (errorType === "CLIENT_ERROR") throw new Error("not worth repeating", { cause: error })
			if (count >= attempts) throw new Error("no attempts left", { cause: error })
			const jitterMs = random() * Math.min(longestDelayMs, baseDelayMs * 2 ** (count - 1))
			const askedMs = retryAfterHint === undefined ? 0 : retryAfterHint.getTime() - Date.now()
			if (askedMs > longestDelayMs) throw new Error("asked to come back much later", { cause: error })
			return token(count, Math.max(jitterMs, askedMs))
		},
		recordSuccess: () => {},
	}
}
