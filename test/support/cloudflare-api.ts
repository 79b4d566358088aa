// STAND-IN for Cloudflare's API, as far as it shows what locks a bucket of R2. Strict: what the real one refuses is
// refused, in its words and with its codes.
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"

export type CloudflareOptions = {
	token: string
	accountId: string
	/** `<jurisdiction>/<bucket>` -> its rules, as the API gives them. */
	buckets: Readonly<Record<string, readonly object[]>>
}

export async function startCloudflareApi({ token, accountId, buckets }: CloudflareOptions) {
	const requests: { url: string; headers: Readonly<Record<string, unknown>> }[] = []
	const server = createServer((request, response) => {
		const { url = "", headers, method } = request
		requests.push({ url, headers })
		const answer = (status: number, body: object) => {
			response.writeHead(status, { "content-type": "application/json" })
			response.end(JSON.stringify(body))
		}
		const refuse = (status: number, code: number, message: string) =>
			answer(status, { success: false, errors: [{ code, message }], messages: [], result: null })
		const [, account, bucket = ""] =
			/^\/client\/v4\/accounts\/([^/]+)\/r2\/buckets\/([^/]+)\/lock$/.exec(url) ?? []
		if (method !== "GET" || account === undefined) return refuse(404, 7003, "Could not route to the request")
		if (headers.authorization !== `Bearer ${token}` || account !== accountId)
			return refuse(403, 10000, "Authentication error")
		const rules = buckets[`${headers["cf-r2-jurisdiction"] ?? "default"}/${bucket}`]
		if (rules === undefined) return refuse(404, 10006, "The specified bucket does not exist.")
		// A bucket that never had a rule has no list of them.
		const result = rules.length === 0 ? {} : { rules }
		return answer(200, { success: true, errors: [], messages: [], result })
	})
	await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
	return {
		api: `http://127.0.0.1:${(server.address() as AddressInfo).port}/client/v4`,
		requests,
		[Symbol.asyncDispose]: () =>
			new Promise<void>((resolve) => {
				server.close(() => resolve())
				server.closeAllConnections()
			}),
	}
}
