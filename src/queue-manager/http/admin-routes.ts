// What instructors set: mode, pause, caps, weights, how long clients wait, the banner.
import { defaultsOf, type Service } from "../service.ts"
import { parseBody } from "./body.ts"
import { HttpError } from "./errors.ts"
import * as shape from "./schemas.ts"
import type { App } from "./server.ts"

/** Registers the routes. */
export function adminRoutes(app: App, service: Service): void {
	const { queue, environment } = service
	const config = { access: "admin" as const }
	const tags = ["admin"]

	async function configure(settings: Record<string, string>) {
		// The environment's defaults first: in its first second nobody may have set them yet, and they would come after.
		const changed = await queue.configure({ ...defaultsOf(environment), ...settings })
		service.refresh()
		return changed
	}

	app.get("/admin/timeout", { config, schema: { tags } }, async () => {
		return { max_wait: Number((await queue.configure({})).get("max_wait") ?? 600) }
	})

	app.post("/admin/timeout", { config, schema: { body: shape.timeoutBody, tags } }, async (request) => {
		const { max_wait } = parseBody(shape.timeoutBody, request.body)
		const clamped = Math.min(1800, Math.max(60, max_wait))
		await configure({ max_wait: String(clamped) })
		return { max_wait: clamped }
	})

	app.put("/queue/mode", { config, schema: { body: shape.modeBody, tags } }, async (request) => {
		const { mode } = parseBody(shape.modeBody, request.body)
		await configure({ mode })
		return { mode }
	})

	app.put("/queue/paused", { config, schema: { body: shape.pausedBody, tags } }, async (request) => {
		const { paused } = parseBody(shape.pausedBody, request.body)
		await configure({ paused: paused ? "1" : "0" })
		return { paused }
	})

	for (const what of ["caps", "weights"] as const) {
		app.put(`/queue/${what}`, { config, schema: { body: shape.shareBody, tags } }, async (request) => {
			const { user_id, value } = parseBody(shape.shareBody, request.body)
			const whole = value === null || what === "weights" ? value : Math.max(1, Math.floor(value))
			return Object.fromEntries(
				[...(await queue.setShare(what, user_id, whole))].map(([user, number]) => [user, Number(number)]),
			)
		})
	}

	// In local mode there is none, and that is told rather than pretended.
	const endpointsOf = async () => {
		if (service.serverless === undefined)
			throw new HttpError(404, "There are no endpoints: INFERENCE_MODE is not serverless")
		const endpoints = await service.serverless.endpoints()
		return {
			active: endpoints.find(({ isActive }) => isActive)?.name ?? null,
			endpoints: endpoints.map(({ isActive, isBlocked, ...rest }) => ({
				...rest,
				active: isActive,
				blocked: isBlocked,
			})),
		}
	}
	app.get("/endpoint", { config, schema: { tags } }, endpointsOf)
	app.put("/endpoint", { config, schema: { body: shape.endpointBody, tags } }, async (request) => {
		const { endpoint } = parseBody(shape.endpointBody, request.body)
		const { endpoints } = await endpointsOf()
		if (!endpoints.some(({ name }) => name === endpoint)) {
			const known = endpoints.map(({ name }) => name).join(", ")
			throw new HttpError(422, `The endpoint ${endpoint} is not configured; there are: ${known}`)
		}
		await configure({ endpoint })
		return endpointsOf()
	})

	app.put("/banner", { config, schema: { body: shape.bannerBody, tags } }, async (request) => {
		const banner = parseBody(shape.bannerBody, request.body)
		await configure({ banner: JSON.stringify(banner) })
		await queue.announce("banner", JSON.stringify(banner), service.now())
		return banner
	})
}
