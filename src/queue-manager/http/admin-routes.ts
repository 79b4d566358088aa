// What instructors set: mode, pause, caps, weights, how long clients wait, the banner.
import type { Service } from "../service.ts"
import { parseBody } from "./body.ts"
import * as shape from "./schemas.ts"
import type { App } from "./server.ts"

/** Registers the routes. */
export function adminRoutes(app: App, service: Service): void {
	const { queue } = service
	const config = { access: "admin" as const }
	const tags = ["admin"]

	async function configure(settings: Record<string, string>) {
		const changed = await queue.configure(settings)
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

	app.put("/banner", { config, schema: { body: shape.bannerBody, tags } }, async (request) => {
		const banner = parseBody(shape.bannerBody, request.body)
		await configure({ banner: JSON.stringify(banner) })
		return banner
	})
}
