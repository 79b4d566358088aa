// P14: how late the event loop is while files are hashed and moved.
import { monitorEventLoopDelay } from "node:perf_hooks"
import { openHashPool } from "../src/lib/storage/hash-pool.ts"
import { digestsOf, randomFile, scratch } from "./support/files.ts"
import { publish } from "./support/measure.ts"
import { startNginx, startSink } from "./support/servers.ts"
import { comfyumeGet, comfyumePut, plain } from "./support/transfers.ts"

const file = await randomFile("gibibyte-1")
const { blocks, digest, md5 } = await digestsOf(file)
using _server = await startNginx(scratch, "gibibyte-1", md5)
using _sink = await startSink()
const resolutionMs = 1
const p99 = async (work: () => unknown) => {
	const delay = monitorEventLoopDelay({ resolution: resolutionMs })
	delay.enable()
	await work()
	delay.disable()
	return delay.percentile(99) / 1e6 - resolutionMs
}
const get = comfyumeGet(plain, blocks)
const put = comfyumePut(file, digest)
get.before?.()
await put.before?.()
const lags = {
	hashing: await p99(async () => {
		await using pool = openHashPool()
		await Promise.all([pool.hashFile(file), pool.hashFile(file)])
	}),
	"a GET": await p99(get.run),
	"a PUT": await p99(put.run),
}
const comparisons = Object.entries(lags).map(([what, ratio]) => ({
	...{ what, ratio, goal: 50, stretch: 20, unit: " ms" },
	most: true as const,
}))
publish("P14", "event-loop lag p99 during", comparisons, {})
