// P17: claims with their completions a second, in fifo, and in round robin at depth 1 000.
import { openClient, report, withQueueManager } from "./support/queue-manager.ts"

const workers = 8
const depth = 1000
const result = JSON.stringify({ prompt_id: "p", status: "success", outputs: {}, execution_time: 1 })

await withQueueManager(async (url) => {
	const clients = Array.from({ length: workers }, () => openClient(url))
	const producer = openClient(url)
	let next = 0
	const submit = async () => {
		next += 1
		const body = JSON.stringify({ user_id: `user${next % 20}`, workflow: { 1: { class_type: "KSampler" } } })
		await producer("POST", "/jobs", body)
	}
	const finish = async (worker: number) => {
		const client = clients[worker]
		const claimed = await client?.("GET", `/workers/next-job?worker_id=w${worker}`)
		const id = /"id":"([^"]+)"/.exec(claimed?.text ?? "")?.[1]
		if (id === undefined) throw new Error("the queue ran dry")
		await client?.("POST", `/workers/complete-job?job_id=${id}`, result)
	}
	const measured: Record<string, number> = {}
	for (const mode of ["fifo", "round_robin"]) {
		await producer("PUT", "/queue/mode", JSON.stringify({ mode }))
		// The backlog is filled up before each round, so that the depth stays about the same.
		const rates: number[] = []
		for (let round = 0; round < 7; round++) {
			const { text } = await producer("GET", "/queue/status")
			let missing = depth + 500 - Number(/"pending_jobs":(\d+)/.exec(text)?.[1] ?? 0)
			for (; missing > 0; missing--) await submit()
			let left = 500
			const startedAt = performance.now()
			await Promise.all(
				clients.map(async (_, worker) => {
					while (left-- > 0) await finish(worker)
				}),
			)
			rates.push(500 / ((performance.now() - startedAt) / 1000))
		}
		measured[mode] = rates.sort((a, b) => a - b)[3] ?? Number.NaN
	}
	const { fifo = Number.NaN, round_robin = Number.NaN } = measured
	report("P17", {
		fifoPerSecond: { value: fifo, goal: "1000 or more", reached: fifo >= 1000 },
		roundRobinPerSecond: { value: round_robin, goal: "640 or more", reached: round_robin >= 640 },
	})
})
