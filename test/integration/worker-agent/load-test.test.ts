// The load test as it is typed: against a queue manager of its own, and against ones that are broken on purpose.
import { execFile } from "node:child_process"
import { fileURLToPath } from "node:url"
import fastify from "fastify"
import { expect, test } from "vitest"
import { describeWith } from "../../support/parts.ts"

const script = fileURLToPath(new URL("../../../scripts/load-test.ts", import.meta.url))

function loadTest(...options: string[]): Promise<{ code: number; out: string }> {
	return new Promise((resolve) => {
		execFile(
			process.execPath,
			[script, "--json", "--speed", "5000", ...options],
			(error, out, complaints) => {
				resolve({ code: typeof error?.code === "number" ? error.code : 0, out: out + complaints })
			},
		)
	})
}

describeWith("redis", "a load test of a queue manager of its own", () => {
	test.each(["fifo", "round_robin", "priority"])(
		"in mode %s loses nothing, and says how it went",
		async (mode) => {
			const { code, out } = await loadTest("--users", "5", "--jobs", "40", "--mode", mode)
			expect(code, out).toBe(0)
			const report = JSON.parse(out)
			expect(report).toMatchObject({
				mode,
				jobs: 40,
				completed: 40,
				lost: 0,
				handedOutTwice: 0,
				endedTwice: 0,
			})
			expect(report.waitMs.byUser).toHaveLength(5)
		},
	)
})

test.each([
	["hands a job out twice", { handsOut: 2, keeps: true }, { handedOutTwice: 4, endedTwice: 4, lost: 0 }],
	["loses what it took in", { handsOut: 1, keeps: false }, { handedOutTwice: 0, lost: 4 }],
])("a queue manager that %s ends it with 3", async (_, { handsOut, keeps }, found) => {
	const waiting: { id: string; metadata: unknown }[] = []
	const server = fastify({ forceCloseConnections: true })
	let count = 0
	server.post("/api/jobs", async (request) => {
		const id = `job-${++count}`
		const { metadata } = request.body as { metadata: unknown }
		for (let copy = 0; copy < handsOut; copy++) waiting.push({ id, metadata })
		return { id }
	})
	server.get("/api/workers/next-job", async () => ({ job: waiting.shift() ?? null }))
	server.post("/api/workers/complete-job", async () => ({ status: "success" }))
	server.get("/api/queue/status", async () => ({ pending_jobs: 0, running_jobs: 0 }))
	server.get("/api/jobs/:id", async () => ({ status: keeps ? "completed" : "pending" }))
	const url = await server.listen({ host: "127.0.0.1", port: 0 })
	try {
		const { code, out } = await loadTest("--url", url, "--users", "2", "--jobs", "4", "--workers", "1")
		expect(code, out).toBe(3)
		expect(JSON.parse(out)).toMatchObject(found)
	} finally {
		await server.close()
	}
})

test("a queue with jobs of its own is left alone", async () => {
	const server = fastify({ forceCloseConnections: true })
	let asked = 0
	server.addHook("onRequest", async () => {
		asked++
	})
	server.get("/api/queue/status", async () => ({ pending_jobs: 1, running_jobs: 0 }))
	const url = await server.listen({ host: "127.0.0.1", port: 0 })
	try {
		expect((await loadTest("--url", url)).code).toBe(2)
		expect(asked).toBe(1)
	} finally {
		await server.close()
	}
})
