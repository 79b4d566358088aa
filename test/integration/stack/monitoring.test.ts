// The monitoring as its programs read it: compose, promtool, and a real Prometheus that asks a real queue manager. Loki,
// Grafana, promtail, cAdvisor and Portainer are in no registry here: their files are only looked at.
import { type ChildProcess, spawn } from "node:child_process"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { parse } from "yaml"
import { queries } from "../../../src/lib/stack/monitoring-views.ts"
import { composeProgram, describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import { startQueueManager } from "../../support/queue-manager.ts"
import { startTestRedis } from "../../support/redis.ts"
import { run } from "../../support/run.ts"
import { freePort } from "../../support/sshd.ts"
import { renderedFor, stackFor } from "../../support/stack.ts"

const address = "100.64.0.7"
const images = { ...imagesOf("prometheus", "grafana", "loki", "promtail", "cadvisor", "portainer") }
const monitored = () => stackFor(2, { monitoring: { address, retentionDays: 15, images } })

let directory = ""
beforeEach(() => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-monitoring-"))
	for (const { path, text } of renderedFor(monitored())) {
		mkdirSync(dirname(join(directory, path)), { recursive: true })
		writeFileSync(join(directory, path), text)
	}
})
afterEach(() => rmSync(directory, { recursive: true, force: true }))

function imagesOf<N extends string>(...names: N[]): Record<N, string> {
	return Object.fromEntries(names.map((name) => [name, `${name}:of-the-tests`])) as Record<N, string>
}

test("nothing of it is there unless it is configured", () => {
	const rendered = renderedFor(stackFor(2))
	expect(rendered.filter(({ path }) => path.includes("monitoring"))).toEqual([])
	expect(rendered.find(({ path }) => path === "compose.yaml")?.text).not.toContain("monitoring")
})

type Service = {
	profiles?: string[]
	ports?: { host_ip: string; published: string }[]
	volumes?: { source: string; target: string; type: string; read_only?: boolean }[]
	environment?: Record<string, string>
}

describeWith("compose", "compose takes the monitoring", () => {
	test("as a profile that is off, on the Tailscale address alone, and Docker's socket in few hands", async () => {
		const config = async (...profile: string[]) => {
			const words = ["-f", "compose.yaml", ...profile, "config", "--format", "json"]
			const environment = { PATH: process.env["PATH"], HOME: directory }
			const { stdout } = await run(composeProgram(), words, { workingDirectory: directory, environment })
			return (JSON.parse(stdout) as { services: Record<string, Service> }).services
		}
		const off = await config()
		const on = await config("--profile", "monitoring", "--profile", "portainer")
		const names = Object.keys(on).filter((name) => !(name in off))
		expect(names.sort()).toEqual(["cadvisor", "grafana", "loki", "portainer", "prometheus", "promtail"])
		const ports = names.flatMap((name) => on[name]?.ports ?? [])
		expect(ports.length).toBeGreaterThan(0)
		expect(new Set(ports.map(({ host_ip }) => host_ip))).toEqual(new Set([address]))
		const withSocket = names.filter((name) =>
			on[name]?.volumes?.some(({ source }) => source.includes("docker.sock")),
		)
		expect(withSocket.sort()).toEqual(["cadvisor", "portainer"])
		// What must outlive a restart lies in volumes of their own, never in /tmp.
		for (const name of ["prometheus", "grafana", "loki", "promtail"])
			expect(on[name]?.volumes?.filter(({ type }) => type === "volume")).toHaveLength(1)
		expect(on["grafana"]?.environment?.["GF_SECURITY_ADMIN_PASSWORD"]?.length).toBeGreaterThanOrEqual(20)
	})
})

test("the panels and their sources fit together", () => {
	const rendered = new Map(renderedFor(monitored()).map(({ path, text }) => [path, text]))
	const board = JSON.parse(rendered.get("monitoring/grafana/dashboards/workshop.json") ?? "") as {
		panels: { datasource: { uid: string }; id: number; gridPos: { x: number; y: number } }[]
	}
	const known = parse(rendered.get("monitoring/grafana/datasources/comfyume.yaml") ?? "") as {
		datasources: { uid: string }[]
	}
	const uids = known.datasources.map(({ uid }) => uid)
	for (const { datasource } of board.panels) expect(uids).toContain(datasource.uid)
	expect(new Set(board.panels.map(({ id }) => id)).size).toBe(board.panels.length)
	expect(new Set(board.panels.map(({ gridPos: { x, y } }) => `${x} ${y}`)).size).toBe(board.panels.length)
	// Every line of every container of ours carries its name to promtail.
	expect(rendered.get("compose.yaml")).toContain("tag: ")
	expect(rendered.get("monitoring/promtail.yml")).toContain("container: tag")
})

describeWith("prometheus", "Prometheus takes the monitoring", () => {
	test("promtool finds nothing wrong", async () => {
		// The configuration names the rules' place in the container.
		const rules = join(directory, "monitoring/rules.yml")
		const text = renderedFor(monitored()).find(({ path }) => path === "monitoring/prometheus.yml")?.text ?? ""
		writeFileSync(join(directory, "prometheus.yml"), text.replace("/etc/prometheus/rules.yml", rules))
		const { stdout } = await run("promtool", ["check", "config", join(directory, "prometheus.yml")])
		expect(stdout).toMatch(/SUCCESS: \d+ rules found/)
	})

	test("every query is right, and asks the queue manager for numbers that it has", async () => {
		await using redis = await startTestRedis()
		await using manager = await startQueueManager({ REDIS_HOST: redis.socket })
		const page = await (await fetch(`${manager.url}/metrics`)).text()
		const asked = new Set(queries.flatMap((query) => query.match(/comfyume_queue_\w+/g) ?? []))
		expect(asked.size).toBeGreaterThan(10)
		const there = new Set(page.match(/^comfyume_queue_\w+/gm))
		// An endpoint's numbers are there in serverless mode alone.
		expect([...asked].filter((name) => !there.has(name))).toEqual(["comfyume_queue_endpoint_ready"])
		expect(page).toContain("# TYPE comfyume_queue_endpoint_ready gauge")

		await using prometheus = await startPrometheus(new URL(manager.url).host)
		await poll(async () => (await prometheus.ask('up{job="queue-manager"} == 1')).length === 1, {
			what: "the queue manager is scraped",
			deadlineMs: 30_000,
		})
		for (const query of queries) await prometheus.ask(query)
		expect(await prometheus.ask("comfyume_queue_redis_up")).toMatchObject([
			{ value: [expect.anything(), "1"] },
		])
		await redis.kill()
		await poll(async () => (await prometheus.ask("comfyume_queue_redis_up == 0")).length === 1, {
			what: "an outage of Redis is seen",
			deadlineMs: 30_000,
		})
	})
})

async function startPrometheus(target: string) {
	const port = await freePort()
	const scrape = [{ job_name: "queue-manager", static_configs: [{ targets: [target] }] }]
	const text = JSON.stringify({ global: { scrape_interval: "1s" }, scrape_configs: scrape })
	writeFileSync(join(directory, "own.yml"), text)
	const child: ChildProcess = spawn(
		"prometheus",
		[
			`--config.file=${join(directory, "own.yml")}`,
			`--storage.tsdb.path=${join(directory, "data")}`,
			`--web.listen-address=127.0.0.1:${port}`,
		],
		{ stdio: "ignore" },
	)
	const base = `http://127.0.0.1:${port}`
	const isReady = async () => (await fetch(`${base}/-/ready`).catch(() => undefined))?.ok === true
	await poll(isReady, { what: "Prometheus is ready", deadlineMs: 30_000 })
	return {
		/** @throws {Error} for a query that Prometheus doesn't take */
		async ask(query: string): Promise<object[]> {
			const answer = await fetch(`${base}/api/v1/query?query=${encodeURIComponent(query)}`)
			const body = (await answer.json()) as { status: string; error?: string; data?: { result: object[] } }
			if (body.status !== "success") throw new Error(`${query}: ${body.error}`)
			return body.data?.result ?? []
		},
		async [Symbol.asyncDispose]() {
			const ended = new Promise((resolve) => child.once("exit", resolve))
			child.kill("SIGKILL")
			await ended
		},
	}
}
