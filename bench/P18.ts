// P18: how long an event takes to reach each of 1 000 WebSocket clients, and how large it is.
import { setTimeout as pause } from "node:timers/promises"
import { openClient, percentile, report, withQueueManager } from "./support/queue-manager.ts"

const clients = 1000
const events = 40
const workflow = { 9: { class_type: "SaveImage", inputs: { filename_prefix: "ComfyUI", images: ["8", 0] } } }

await withQueueManager(async (url) => {
	const submit = openClient(url)
	const tookMs: number[] = []
	let largestBytes = 0
	let heard = 0
	const sockets = await Promise.all(
		Array.from({ length: clients }, async () => {
			const socket = new WebSocket(`${url.replace("http", "ws")}/ws`)
			await new Promise((resolve, reject) => {
				socket.addEventListener("open", resolve)
				socket.addEventListener("error", reject)
			})
			socket.addEventListener("message", ({ data }) => {
				// One machine has one clock: the time stamp is Redis' own, in whole milliseconds.
				const { timestamp } = JSON.parse(String(data)) as { timestamp: string }
				tookMs.push(Date.now() - Date.parse(timestamp))
				largestBytes = Math.max(largestBytes, Buffer.byteLength(String(data)))
				heard += 1
			})
			return socket
		}),
	)
	for (let event = 1; event <= events; event++) {
		const body = JSON.stringify({ user_id: `user${event}`, workflow, metadata: { batch_index: event } })
		const answer = await submit("POST", "/api/jobs", body)
		if (answer.status !== 201) throw new Error(`submit: ${answer.status} ${answer.text}`)
		const deadline = performance.now() + 10_000
		while (heard < event * clients) {
			if (performance.now() > deadline) throw new Error(`only ${heard} of ${event * clients} events came`)
			await pause(5)
		}
	}
	for (const socket of sockets) socket.close()
	// The first ones find everything cold.
	const p99 = percentile(tookMs.slice(clients * 5), 0.99)
	report("P18", {
		eventP99Ms: { value: p99, goal: "50 or less", reached: p99 <= 50 },
		largestEventBytes: { value: largestBytes, goal: "1500 or less", reached: largestBytes <= 1500 },
		eventsHeard: { value: heard, goal: `${clients * events}`, reached: heard === clients * events },
	})
})
