// How an exchange fails: with a status, or a code of the system or of our own.

/** A failed exchange. `answer` holds the beginning of a refusal's body. */
export class ExchangeFailed extends Error {
	readonly code?: string
	readonly status?: number
	readonly retryAfterMs?: number
	constructor(message: string, more: { code?: string; status?: number; retryAfterMs?: number } = {}) {
		super(message)
		this.name = "ExchangeFailed"
		Object.assign(this, more)
	}
}
