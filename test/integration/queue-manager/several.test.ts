// Several queue managers on purpose: processes of their own on one Redis, alone and behind one nginx. What one is told,
// all know; one that dies takes nothing with it.
import { spawn } from "node:child_process"
import { mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, test } from "vitest"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import {
	type Ask,
	clientOf,
	type EventClient,
	openEvents,
	startQueueManager,
} from "../../support/queue-manager.ts"
import { startTestRedis } from "../../support/redis.ts"
import { standBetween } from "../../support/redis-between.ts"
import { freePort } from "../../support/sshd.ts"

const job = (user_id: string) => ({ user_id, workflow: { a: 1 } })
const submit = async (ask: Ask, user = "ann"): Promise<string> => {
	const { status, body } = await ask("POST", "/api/jobs", job(user))
	expect(status).toBe(201)
	return body.id
}
const claim = async (ask: Ask, worker: string) =>
	(await ask("GET", `/api/workers/next-job?worker_id=${worker}`)).body.job?.id
const told = ({ received }: EventClient) => received.map(({ type, data }) => [type, data.id, data.status])

async function pair() {
	const redis = await startTestRedis()
	const environment = { REDIS_HOST: redis.socket, WORKSHOP: "shared", MAX_QUEUE_DEPTH: "0" }
	const managers = await Promise.all([startQueueManager(environment), startQueueManager(environment)])
	return {
		managers,
		asks: managers.map(({ url }) => clientOf(url)) as [Ask, Ask],
		async [Symbol.asyncDispose]() {
			for (const manager of managers) await manager.kill()
			await redis[Symbol.asyncDispose]()
		},
	}
}

describeWith("redis", "two queue managers on one Redis", () => {
	test("are one queue: order, weights, mode, ends and events are the same at both", async () => {
		await using both = await pair()
		const [one, other] = both.asks
		const clients = await Promise.all(both.managers.map(({ url }) => openEvents(url)))
		await one("PUT", "/queue/mode", { mode: "round_robin" })
		await other("PUT", "/queue/weights", { user_id: "bob", value: 3 })
		const owner = new Map<string, string>()
		for (let n = 0; n < 4; n++) {
			owner.set(await submit(one, "ann"), "ann")
			for (let time = 0; time < 3; time++) owner.set(await submit(other, "bob"), "bob")
		}
		const claimed: string[] = []
		for (let n = 0; n < 8; n++) claimed.push(await claim(n % 2 === 0 ? one : other, `w${n}`))
		expect(new Set(claimed).size).toBe(8)
		// Three turns of bob's to one of ann's, whoever is asked.
		expect(claimed.filter((id) => owner.get(id) === "bob").length).toBe(6)
		// Handed out by one, handed in at the other; twice, and counted once.
		for (const ask of [other, one]) {
			await ask("POST", `/workers/complete-job?job_id=${claimed[0]}`, { status: "success" })
		}
		expect((await other("GET", "/queue/status")).body).toMatchObject({
			mode: "round_robin",
			completed_jobs: 1,
		})
		for (const client of clients) {
			await client.next("the end", ({ data }) => data.id === claimed[0] && data.status === "completed")
		}
		const [first, second] = clients.map(told)
		expect(first).toEqual(second)
		expect(first).toHaveLength(16 + 8 + 1)
		for (const client of clients) await client.close()
	})

	test("an event client whose queue manager was killed goes on at the other, without a gap and without repeats", async () => {
		await using both = await pair()
		const [one, other] = both.asks
		const [dying, living] = both.managers
		const client = await openEvents(dying?.url ?? "")
		const before = await submit(one)
		const { id: last } = await client.next("the first event", ({ data }) => data.id === before)
		const running = await claim(one, "w")
		await dying?.kill()
		const missed = await submit(other)
		const back = await openEvents(living?.url ?? "", `/ws?after=${last}`)
		const live = await submit(other)
		await back.next("the live event", ({ data }) => data.id === live)
		expect(told(back)).toEqual([
			["job_updated", before, "running"],
			["job_created", missed, "pending"],
			["job_created", live, "pending"],
		])
		// The job that the dead one had handed out is handed in at the other.
		expect(running).toBe(before)
		await other("POST", `/workers/complete-job?job_id=${before}`, { status: "success" })
		expect((await other("GET", `/jobs/${before}`)).body.status).toBe("completed")
		await back.close()
	})

	test("one that has just started tells of everything from its first answer on", async () => {
		await using redis = await startTestRedis()
		// Where the stream ends is learned late: until then it must not take jobs.
		await using between = await standBetween(redis.socket, { word: "XREVRANGE", ms: 400 })
		await using manager = await startQueueManager({ REDIS_HOST: between.socket })
		const client = await openEvents(manager.url)
		const id = await submit(clientOf(manager.url))
		await client.next("the first job's event", ({ data }) => data.id === id)
		await client.close()
	})
})

describeWith("nginx", "two queue managers behind one nginx", () => {
	test("take every submit while one of them is killed, and events go on where they were", async () => {
		await using both = await pair()
		await using door = await openDoor(both.managers.map(({ url }) => url))
		const ask = clientOf(door.url)
		const accepted = [await submit(ask), await submit(ask)]
		const client = await openEvents(door.url)
		const isLast = ({ data }: { data: { id: string } }) => data.id === accepted.at(-1)
		accepted.push(await submit(ask))
		const { id: last } = await client.next("an event", isLast)
		await both.managers[0]?.kill()
		for (let n = 0; n < 20; n++) accepted.push(await submit(ask))
		const back = await openEvents(door.url, `/ws?after=${last}`)
		await back.next("the last event", isLast)
		expect(told(back).map(([, id]) => id)).toEqual(accepted.slice(3))
		expect((await ask("GET", "/api/queue/status")).body.pending_jobs).toBe(accepted.length)
		await back.close()
	})
})

/** nginx as docs/queue-manager.md describes it for several queue managers, on a port of its own. */
async function openDoor(urls: readonly string[]) {
	const directory = await mkdtemp(join(tmpdir(), "comfyume-door-"))
	const port = await freePort()
	const servers = urls.map((url) => `server ${new URL(url).host} max_fails=1 fail_timeout=5s;`).join(" ")
	await writeFile(
		join(directory, "nginx.conf"),
		`daemon off; pid ${directory}/pid; error_log stderr; worker_processes 1; events {}
http {
	access_log off;
	client_body_temp_path ${directory}/body; proxy_temp_path ${directory}/proxy;
	fastcgi_temp_path ${directory}/f; uwsgi_temp_path ${directory}/u; scgi_temp_path ${directory}/s;
	upstream queue_managers { ${servers} }
	map $http_upgrade $connection_upgrade { default upgrade; "" close; }
	server {
		listen 127.0.0.1:${port};
		location / {
			proxy_pass http://queue_managers;
			proxy_http_version 1.1;
			proxy_set_header Upgrade $http_upgrade;
			proxy_set_header Connection $connection_upgrade;
		}
	}
}
`,
	)
	const child = spawn("nginx", ["-c", join(directory, "nginx.conf"), "-p", directory], { stdio: "ignore" })
	const url = `http://127.0.0.1:${port}`
	await poll(
		() =>
			fetch(`${url}/health`).then(
				({ ok }) => ok,
				() => false,
			),
		{
			what: "nginx answers",
			deadlineMs: 20_000,
		},
	)
	return {
		url,
		async [Symbol.asyncDispose]() {
			const ended = new Promise((resolve) => child.once("exit", resolve))
			child.kill("SIGTERM")
			await ended
			await rm(directory, { recursive: true, force: true })
		},
	}
}
