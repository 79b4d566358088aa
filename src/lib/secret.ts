// A value that must never reach a screen, a log, JSON or an error text.
import { inspect } from "node:util"

const hidden = "[secret]"

/** Holds one secret string. Prints as `[secret]` everywhere; only `reveal()` gives the value, and only at the edges. */
export class Secret {
	readonly #value: string

	constructor(value: string) {
		this.#value = value
	}

	reveal(): string {
		return this.#value
	}

	toString(): string {
		return hidden
	}

	toJSON(): string {
		return hidden
	}

	[inspect.custom](): string {
		return hidden
	}
}

/**
 * Replaces every occurrence of the secrets in a text that came from elsewhere (a tool's output, a server's answer).
 * Values shorter than 6 characters are left: replacing them would blacken ordinary words.
 */
export function redact(text: string, secrets: Iterable<Secret>): string {
	let clean = text
	for (const secret of secrets) {
		const value = secret.reveal()
		if (value.length >= 6) clean = clean.replaceAll(value, hidden)
	}
	return clean
}
