// The gate's three addresses: what nginx asks, where somebody without a door is sent to the own one, and health.
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http"
import { type GateOptions, judge, type Question } from "./gate.ts"
import { noSession } from "./session.ts"

/** Not listening yet. */
export function createGate(options: GateOptions): Server {
	return createServer({ maxHeaderSize: 32_768, requestTimeout: 15_000 }, (request, response) => {
		answer(options, request, response).catch(() => {
			if (!response.headersSent) response.writeHead(500)
			response.end()
		})
	})
}

async function answer(
	options: GateOptions,
	request: IncomingMessage,
	response: ServerResponse,
): Promise<void> {
	request.resume()
	const path = request.url ?? ""
	if (path === "/health") {
		const problem = await options.passwords.problem()
		const body = { status: problem === undefined ? "healthy" : "unhealthy", problem: problem ?? null }
		return send(response, 200, { "content-type": "application/json" }, JSON.stringify(body))
	}
	if (path === "/check") return check(options, request, response)
	if (path === "/") return enter(options, request, response)
	if (path === "/sign-out") return signOut(options, request, response)
	send(response, 404)
}

const challenge = { "www-authenticate": 'Basic realm="comfyume", charset="UTF-8"' }

async function check(
	options: GateOptions,
	request: IncomingMessage,
	response: ServerResponse,
): Promise<void> {
	const verdict = await judge(options, questionOf(request))
	if (verdict.state === "unknown") return send(response, 401, challenge)
	if (verdict.state === "refused") return send(response, 403, { "x-comfyume-reason": verdict.reason })
	send(response, 204, {
		"x-comfyume-user": verdict.user,
		"x-comfyume-role": verdict.role,
		...(verdict.cookie === undefined ? {} : { "set-cookie": verdict.cookie }),
	})
}

async function enter(
	options: GateOptions,
	request: IncomingMessage,
	response: ServerResponse,
): Promise<void> {
	const verdict = await judge(options, { ...questionOf(request), door: "any" })
	if (verdict.state === "unknown") return send(response, 401, challenge, "Sign in.\n")
	if (verdict.state === "refused")
		return send(response, 429, {}, "Too many wrong passwords. Wait a minute.\n")
	send(response, 302, { location: verdict.role === "admin" ? "/admin/" : `/${verdict.user}/` })
}

// A browser remembers a password until another one is asked for: so it is, once, and the new one leads on.
async function signOut(
	options: GateOptions,
	request: IncomingMessage,
	response: ServerResponse,
): Promise<void> {
	const question = questionOf(request)
	const isFirst = question.authorization === "" || question.cookie.includes("__Host-comfyume=")
	if (isFirst) return send(response, 401, { ...challenge, "set-cookie": noSession }, "You are signed out.\n")
	return enter(options, request, response)
}

function questionOf({ headers }: IncomingMessage): Question {
	return {
		door: String(headers["x-comfyume-door"] ?? ""),
		authorization: headers.authorization ?? "",
		cookie: headers.cookie ?? "",
		address: String(headers["x-comfyume-address"] ?? ""),
	}
}

function send(
	response: ServerResponse,
	status: number,
	headers: Readonly<Record<string, string>> = {},
	body = "",
): void {
	response.writeHead(status, { "cache-control": "no-store", ...headers })
	response.end(body)
}
