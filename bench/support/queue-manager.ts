// A queue manager on its Redis, as benchmarks of it need them, and clients that keep their connection.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { Agent, request } from "node:http"
import { cpus, loadavg } from "node:os"
import { fileURLToPath } from "node:url"
import { startQueueManager } from "../../test/support/queue-manager.ts"
import { startTestRedis } from "../../test/support/redis.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))

export type Client = (
	method: string,
	path: string,
	body?: string | Buffer,
) => Promise<{ status: number; text: string }>

/** Starts both, runs the work, ends both. Redis keeps nothing on disk: what is measured is the queue manager. */
export async function withQueueManager(work: (url: string) => Promise<void>): Promise<void> {
	await using redis = await startTestRedis()
	await using manager = await startQueueManager({
		REDIS_HOST: redis.socket,
		MAX_QUEUE_DEPTH: "0",
		LOG_LEVEL: "info",
	})
	await work(manager.url)
}

/** A client with one connection of its own. */
export function openClient(url: string): Client {
	const agent = new Agent({ keepAlive: true, maxSockets: 1 })
	const { hostname, port } = new URL(url)
	return (method, path, body) =>
		new Promise((resolve, reject) => {
			const headers =
				body === undefined
					? {}
					: { "content-type": "application/json", "content-length": Buffer.byteLength(body) }
			const asked = request({ agent, hostname, port, method, path, headers }, (answer) => {
				let text = ""
				answer.setEncoding("utf8")
				answer.on("data", (chunk: string) => {
					text += chunk
				})
				answer.on("end", () => resolve({ status: answer.statusCode ?? 0, text }))
			})
			asked.on("error", reject)
			asked.end(body)
		})
}

/** Lets clients repeat something for a while. @returns how often a second, and how long each took in ms */
export async function load(
	clients: number,
	durationMs: number,
	once: (client: number) => Promise<void>,
): Promise<{ perSecond: number; tookMs: number[] }> {
	const tookMs: number[] = []
	const startedAt = performance.now()
	const deadline = startedAt + durationMs
	await Promise.all(
		Array.from({ length: clients }, async (_, client) => {
			while (performance.now() < deadline) {
				const from = performance.now()
				await once(client)
				tookMs.push(performance.now() - from)
			}
		}),
	)
	return { perSecond: (tookMs.length / (performance.now() - startedAt)) * 1000, tookMs }
}

/** The value below which a share of all values lies. */
export function percentile(values: readonly number[], share: number): number {
	const sorted = [...values].sort((a, b) => a - b)
	return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN
}

/** Writes bench/results/<goal>.json, says it, and sets the exit code: 3 when a goal was missed. */
export function report(
	goal: string,
	measured: Record<string, { value: number; goal: string; reached: boolean }>,
) {
	const rounded = Object.fromEntries(
		Object.entries(measured).map(([name, one]) => [name, { ...one, value: Number(one.value.toFixed(2)) }]),
	)
	const { version } = JSON.parse(readFileSync(`${root}package.json`, "utf8")) as { version: string }
	const machine = `${cpus()[0]?.model ?? "unknown"}, ${cpus().length} cores, clients on the same machine`
	// On a machine that others use at the time the values are theirs as much as ours: it is said how busy it was.
	const loadAverage = loadavg().map((value) => Number(value.toFixed(2)))
	const result = { measured: rounded, loadAverage, node: process.version, machine, version }
	mkdirSync(`${root}bench/results`, { recursive: true })
	writeFileSync(`${root}bench/results/${goal}.json`, `${JSON.stringify(result, undefined, "\t")}\n`)
	for (const [name, one] of Object.entries(rounded)) {
		console.log(`${goal}: ${name} ${one.value} (goal ${one.goal})${one.reached ? "" : ", missed"}`)
	}
	if (Object.values(rounded).some(({ reached }) => !reached)) process.exitCode = 3
}
