// Errors as clients see them: `{detail}`, with a text or a list of what is wrong where.
import type { z } from "zod"

export type Problem = { loc: (string | number)[]; msg: string; type: string }

/** An answer other than the one that was asked for. */
export class HttpError extends Error {
	readonly statusCode: number
	readonly detail: string | Problem[]
	readonly headers: Readonly<Record<string, string>>

	constructor(
		statusCode: number,
		detail: string | Problem[],
		headers: Readonly<Record<string, string>> = {},
	) {
		super(typeof detail === "string" ? detail : detail.map(({ msg }) => msg).join("; "))
		this.statusCode = statusCode
		this.detail = detail
		this.headers = headers
	}
}

/** What zod found wrong, in the shape that clients know. */
export function problemsOf(issues: readonly z.core.$ZodIssue[], where: string): Problem[] {
	return issues.map(({ path, message, code }) => ({
		loc: [where, ...path.map((part) => (typeof part === "number" ? part : String(part)))],
		msg: message,
		type: code ?? "invalid",
	}))
}

/** One thing that is wrong with the body. */
export const invalid = (name: string, msg: string) =>
	new HttpError(422, [{ loc: ["body", name], msg, type: "invalid" }])
