// P16: submits a second from 20 clients, and from 2 000 users onto a backlog of 10 000.
import { load, openClient, percentile, report, withQueueManager } from "./support/queue-manager.ts"

const workflow = {
	3: { class_type: "KSampler", inputs: { seed: 1, steps: 20, cfg: 8, model: ["4", 0] } },
	9: { class_type: "SaveImage", inputs: { filename_prefix: "ComfyUI", images: ["8", 0] } },
}
const bodyOf = (user: number) => JSON.stringify({ user_id: `user${user}`, workflow, priority: 2 })

await withQueueManager(async (url) => {
	const clients = Array.from({ length: 20 }, () => openClient(url))
	let users = 20
	let next = 0
	const submit = async (client: number) => {
		next += 1
		const answer = await clients[client]?.("POST", "/api/jobs", bodyOf(next % users))
		if (answer?.status !== 201) throw new Error(`submit: ${answer?.status} ${answer?.text}`)
	}
	await load(20, 2000, submit)
	const few = await load(20, 5000, submit)
	users = 2000
	while (next < 10_000) await Promise.all(clients.map((_, client) => submit(client)))
	const many = await load(20, 5000, submit)
	const p99 = percentile(few.tookMs, 0.99)
	const ratio = many.perSecond / few.perSecond
	report("P16", {
		submitsPerSecond: { value: few.perSecond, goal: "1600 or more", reached: few.perSecond >= 1600 },
		submitP99Ms: { value: p99, goal: "40 or less", reached: p99 <= 40 },
		ratioAt2000Users: { value: ratio, goal: "0.8 or more", reached: ratio >= 0.8 },
	})
})
