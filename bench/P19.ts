// P19: how long small submits take while ten clients submit 10 MB each, again and again. Those run in a process of their
// own, so that making the bodies doesn't count.
import { spawn } from "node:child_process"
import { load, openClient, percentile, report, withQueueManager } from "./support/queue-manager.ts"

const [role, target] = process.argv.slice(2)
if (role === "heavy") await submitHeavily(target ?? "")
else await measure()

async function submitHeavily(url: string): Promise<void> {
	const node = { class_type: "KSampler", inputs: { text: "a walk through the old town at night", steps: 20 } }
	const nodes = Object.fromEntries(Array.from({ length: 90_000 }, (_, index) => [index, node]))
	const body = Buffer.from(JSON.stringify({ user_id: "heavy", workflow: nodes }))
	const clients = Array.from({ length: 10 }, () => openClient(url))
	for (let round = 0; round < 2; round++) {
		const answers = await Promise.all(clients.map((client) => client("POST", "/api/jobs", body)))
		if (answers.some(({ status }) => status !== 201)) throw new Error("a large submit was refused")
		process.stdout.write(`${(body.length / 1e6).toFixed(1)} MB\n`)
	}
}

async function measure(): Promise<void> {
	await withQueueManager(async (url) => {
		const client = openClient(url)
		const small = JSON.stringify({ user_id: "light", workflow: { 1: { class_type: "KSampler" } } })
		const submit = async () => void (await client("POST", "/api/jobs", small))
		await load(1, 1000, submit)
		const heavy = spawn(process.execPath, [import.meta.filename, "heavy", url], {
			stdio: ["ignore", "pipe", "inherit"],
		})
		let isOver = false
		heavy.once("exit", (code) => {
			isOver = true
			if (code !== 0) process.exitCode = 1
		})
		const tookMs: number[] = []
		while (!isOver) {
			const { tookMs: some } = await load(1, 50, submit)
			tookMs.push(...some)
		}
		const p99 = percentile(tookMs, 0.99)
		report("P19", { smallSubmitP99Ms: { value: p99, goal: "50 or less", reached: p99 <= 50 } })
		console.log(`P19: ${tookMs.length} small submits, slowest ${Math.max(...tookMs).toFixed(1)} ms`)
	})
}
