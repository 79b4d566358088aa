// What the answers of a publisher (Hugging Face) and its storage mean to an operator.
import type { IncomingMessage } from "node:http"
import { exitCodes, OperatorError } from "../errors.ts"

export type Asked = {
	/** The manifest's URL: never the signed one that it redirects to. */
	address: string
	/** Who answered. */
	host: string
	/** Whether the token was sent to the publisher. */
	withToken: boolean
	hasToken: boolean
	/** Whether the token belongs to this publisher at all. */
	isTokens: boolean
	/** `owner/name`, where the licence is accepted. */
	repository?: string
}

export const isRedirect = ({ statusCode = 0, headers }: IncomingMessage): boolean =>
	[301, 302, 303, 307, 308].includes(statusCode) && headers["location"] !== undefined

/** True where a signed link may only have expired: storages say so in several ways. */
export const asksAgain = ({ statusCode = 0 }: IncomingMessage): boolean =>
	[400, 401, 403, 404, 410].includes(statusCode)

/** Why this answer is none that bytes can be taken from; undefined when it is one. Unreachable (4) is worth another try. */
export function refusalOf(response: IncomingMessage, asked: Asked): OperatorError | undefined {
	const { statusCode = 0, headers } = response
	const { address, host, withToken, hasToken, isTokens } = asked
	const said = String(headers["x-error-code"] ?? "")
	const type = headers["content-type"] ?? ""
	if (
		statusCode >= 400 &&
		statusCode < 500 &&
		statusCode !== 416 &&
		statusCode !== 429 &&
		host !== new URL(address).host
	)
		return new OperatorError(`${address}: ${host}, where it sends us, refuses its link with ${statusCode}`, {
			exitCode: exitCodes.unreachable,
			hint: "compare this machine's clock: timedatectl",
		})
	if (statusCode === 401 || statusCode === 403) {
		const { refusedCredentials: exitCode } = exitCodes
		if (!isTokens)
			return new OperatorError(
				`${address}: ${host} lets nobody in without credentials, and there are none for it`,
				{
					exitCode,
				},
			)
		if (!hasToken)
			return new OperatorError(`${address}: ${host} asks for a token, and there is no HF_TOKEN`, {
				exitCode,
				hint: "make one that may read at https://huggingface.co/settings/tokens, and add HF_TOKEN=… to secrets.env",
			})
		if (withToken && (statusCode === 403 || said === "GatedRepo"))
			return new OperatorError(
				`${address}: the account of HF_TOKEN may not read it: its licence has not been accepted, or the token has no right to gated repositories`,
				{ exitCode, hint: `accept the licence at ${licencePage(asked)}` },
			)
		return new OperatorError(`${address}: ${host} refuses HF_TOKEN`, {
			exitCode,
			hint: "look whether it is still valid: https://huggingface.co/settings/tokens",
		})
	}
	if (statusCode === 404 || statusCode === 410)
		return new OperatorError(
			`${address}: there is no such file${said === "RepoNotFound" ? "; the repository is gone, or private" : ""}`,
			{ hint: "correct its url in the manifest: comfyume manifest check" },
		)
	if (statusCode === 416) return new OperatorError(`${address}: it is empty, or shorter than it was`)
	if (statusCode === 429 || statusCode >= 500)
		return new OperatorError(`${address}: ${host} answers with ${statusCode}; retry later`, {
			exitCode: exitCodes.unreachable,
			hint: "run the same command again later: it goes on where this run stopped",
			cause: { retryAfterMs: Math.max(0, Number(headers["retry-after"] ?? 0) * 1000 || 0) },
		})
	if (statusCode !== 200 && statusCode !== 206)
		return new OperatorError(`${address}: ${host} answers with ${statusCode}`)
	if (/^text\/html\b/i.test(type))
		return new OperatorError(`${address}: ${host} answered with an HTML page, not a file`, {
			hint: "open the address in a browser; a sign-in page of this network can stand in between",
		})
	return undefined
}

function licencePage({ address, repository }: Asked): string {
	const { origin, pathname } = new URL(address)
	return `${origin}/${repository ?? pathname.split("/").slice(1, 3).join("/")}`
}
