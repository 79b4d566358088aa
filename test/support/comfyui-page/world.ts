// A workshop as a user's browser sees it: the real frontend of ComfyUI in a real Chromium, behind the real nginx and auth
// gate, with a real queue manager and Redis. What stands in: ComfyUI's Python server (server.py beside this), and the GPU
// worker, which the tests play themselves over HTTP.
import { type ChildProcess, spawn, spawnSync } from "node:child_process"
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { type BrowserContext, chromium, type Page } from "playwright-core"
import { stackOf } from "../../../src/lib/config/environment.ts"
import { serviceToken } from "../../../src/lib/formats/service-token.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { domain, openFrontDoor, proxySecret, testEnvironment } from "../front-door.ts"
import { comfyuiPackages } from "../parts.ts"
import { poll } from "../poll.ts"
import { type Ask, clientOf, startQueueManager, type TestQueueManager } from "../queue-manager.ts"
import { startTestRedis } from "../redis.ts"
import { freePort } from "../sshd.ts"

const repository = fileURLToPath(new URL("../../..", import.meta.url))
const chromiumProgram = "/usr/bin/chromium"
const extension = join(repository, "templates/stack/frontend/custom_nodes/comfyume")
const tokenKey = "made-up-token-key-of-the-tests-00000001"
/** Jobs that may wait. */
const depth = 6
const workflowName = "first steps"

export type World = Awaited<ReturnType<typeof openWorld>>

/**
 * @param users how many have a ComfyUI
 * @param withoutValidation whose ComfyUI has nothing to check workflows with
 */
export async function openWorld(users: number, withoutValidation?: string) {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-page-"))
	const redis = await startTestRedis()
	const managerPort = await freePort()
	const managerEnvironment = {
		REDIS_HOST: redis.socket,
		PORT: String(managerPort),
		WORKSHOP: "pages",
		AUTH_MODE: "proxy",
		PROXY_SECRET: proxySecret,
		TOKEN_KEY: tokenKey,
		MAX_QUEUE_DEPTH: String(depth),
		// One user fills it here; with half of it each would be told of that first.
		MAX_USER_DEPTH: String(depth),
	}
	let manager: TestQueueManager = await startQueueManager(managerEnvironment)
	const ids = Array.from({ length: users }, (_, index) => `user${String(index + 1).padStart(3, "0")}`)
	const comfyuis = new Map<string, Comfyui>()
	for (const id of ids) {
		const environment = id === withoutValidation ? { WITHOUT_VALIDATION: "1" } : {}
		comfyuis.set(id, await startComfyui(id, join(directory, id), environment))
	}
	const realPorts = Object.fromEntries([...comfyuis].map(([id, { port }]) => [id, port]))
	const door = await openFrontDoor(stackOf(testEnvironment(undefined)), users, {
		...realPorts,
		"queue-manager": managerPort,
	})
	const { program, address } = browserProgram(directory, door.ports.https)
	const browser = await chromium.launch({
		executablePath: program,
		args: [
			"--headless",
			"--no-sandbox",
			"--disable-gpu",
			"--disable-dev-shm-usage",
			"--disable-background-networking",
			"--disable-component-update",
			"--disable-sync",
			"--no-first-run",
			// The workshop is on this machine; nothing else is to be found.
			`--host-resolver-rules=MAP ${domain} ${address}, MAP * ~NOTFOUND`,
		],
	})
	const bearer = (role: "admin" | "worker" | "user", name: string): Ask =>
		clientOf(`http://127.0.0.1:${managerPort}`, {
			authorization: `Bearer ${serviceToken(new Secret(tokenKey), role, name, 1)}`,
		})

	/** A user's browser with nothing in it yet. */
	async function signIn(user: string, options: Parameters<typeof browser.newContext>[0] = {}) {
		return browser.newContext({
			ignoreHTTPSErrors: true,
			httpCredentials: { username: user, password: door.passwords.get(user) ?? "" },
			...options,
		})
	}

	return {
		depth,
		contexts: () => browser.contexts(),
		worker: bearer("worker", "gpu-1"),
		admin: bearer("admin", "admin"),
		userClient: (user: string) => bearer("user", user),
		signIn,
		outputs: (user: string) => join(directory, user, "outputs"),
		/** Opens a user's ComfyUI and waits until it can be used. */
		open: async (context: BrowserContext, user: string, query = ""): Promise<Page> => {
			const page = await context.newPage()
			await page.goto(`https://${domain}:${door.ports.https}/${user}/${query}`)
			await page.waitForFunction(isReady, undefined, { timeout: 45_000 })
			return page
		},
		killManager: () => manager.kill(),
		startManager: async () => {
			manager = await startQueueManager(managerEnvironment)
		},
		managerLog: () => manager.log(),
		/** Of a user's ComfyUI: how many prompts came to its own queue. */
		askedNatively: async (user: string): Promise<number> =>
			Number(await (await fetch(`http://127.0.0.1:${realPorts[user]}/asked-natively`)).text()),
		[Symbol.asyncDispose]: async () => {
			await browser.close()
			await door[Symbol.asyncDispose]()
			for (const { process } of comfyuis.values()) await end(process)
			await manager[Symbol.asyncDispose]()
			await redis[Symbol.asyncDispose]()
			rmSync(directory, { recursive: true, force: true })
		},
	}
}

/**
 * Chromium, in a network of its own where that can be had: it breaks off all connections (ERR_NETWORK_CHANGED) when an
 * interface comes or goes on the machine, as other tests' instances make them. The network ends with the browser.
 */
function browserProgram(directory: string, port: number): { program: string; address: string } {
	// Not without root, and not in every container.
	const mayHaveOne = spawnSync("unshare", ["--net", "true"], { stdio: "ignore" }).status === 0
	if (!mayHaveOne) return { program: chromiumProgram, address: "127.0.0.1" }
	const subnet = `198.19.${port >> 8}`
	const [outer, inner] = [`${subnet}.${(port & 0xfc) + 1}`, `${subnet}.${(port & 0xfc) + 2}`]
	const program = join(directory, "chromium")
	const link = `cqp${port}`
	const script = `#!/bin/sh
exec unshare --net sh -ec '
	parent=$1; shift
	ip link set lo up
	nsenter --target "$parent" --net ip link add ${link} type veth peer name eth0 netns $$
	nsenter --target "$parent" --net ip address add ${outer}/30 dev ${link}
	nsenter --target "$parent" --net ip link set ${link} up
	ip address add ${inner}/30 dev eth0
	# Else an IPv6 address comes a second later, and that is a change too.
	ip link set eth0 addrgenmode none
	ip link set eth0 up
	exec ${chromiumProgram} "$@"
' sh "$PPID" "$@"
`
	writeFileSync(program, script, { mode: 0o755 })
	return { program, address: outer }
}

declare const window: {
	app?: { extensionManager?: { workflow?: { activeWorkflow?: object | null } } }
}
const isReady = () => window.app?.extensionManager?.workflow?.activeWorkflow != null

type Comfyui = { port: number; process: ChildProcess }

/** Starts the stand-in for a user's ComfyUI server, with the extension in it. */
export async function startComfyui(
	user: string,
	home: string,
	environment: Readonly<Record<string, string>> = {},
): Promise<Comfyui> {
	for (const name of ["user/workflows", "outputs", "workflows"])
		mkdirSync(join(home, name), { recursive: true })
	for (const place of ["user/workflows", "workflows"])
		writeFileSync(join(home, place, `${workflowName}.json`), JSON.stringify(firstWorkflow))
	const port = await freePort()
	let log = ""
	const child = spawn("python3", [join(import.meta.dirname, "server.py"), String(port), extension, home], {
		stdio: ["ignore", "pipe", "pipe"],
		env: {
			PATH: process.env["PATH"],
			PYTHONPATH: comfyuiPackages(),
			PYTHONDONTWRITEBYTECODE: "1",
			USER_ID: user,
			WORKFLOWS_DIRECTORY: join(home, "workflows"),
			...environment,
		},
	})
	for (const stream of [child.stdout, child.stderr])
		stream.on("data", (chunk) => {
			log = (log + chunk).slice(-10_000)
		})
	const answers = async () => {
		if (child.exitCode !== null) throw new Error(`the stand-in for ComfyUI ended:\n${log}`)
		return fetch(`http://127.0.0.1:${port}/system_stats`).then(
			({ ok }) => ok,
			() => false,
		)
	}
	await poll(answers, { what: "the stand-in for ComfyUI answers", deadlineMs: 30_000 })
	return { port, process: child }
}

async function end(child: ChildProcess): Promise<void> {
	if (child.exitCode !== null || child.signalCode !== null) return
	const ended = new Promise((resolve) => child.once("exit", resolve))
	child.kill("SIGKILL")
	await ended
}

/** Two nodes: a picture made from a seed that grows with each prompt, and one that saves it. */
const firstWorkflow = {
	id: "5f0c1d52-3f4f-4a3c-9a55-0c9f3a8a1c11",
	revision: 0,
	last_node_id: 2,
	last_link_id: 1,
	nodes: [
		{
			id: 1,
			type: "MadeUpPicture",
			pos: [80, 120],
			size: [270, 110],
			flags: {},
			order: 0,
			mode: 0,
			inputs: [],
			outputs: [{ name: "IMAGE", type: "IMAGE", links: [1] }],
			properties: {},
			widgets_values: [100, "increment", 64],
		},
		{
			id: 2,
			type: "SaveImage",
			pos: [420, 120],
			size: [270, 240],
			flags: {},
			order: 1,
			mode: 0,
			inputs: [{ name: "images", type: "IMAGE", link: 1 }],
			outputs: [],
			properties: {},
			widgets_values: ["workshop"],
		},
	],
	links: [[1, 1, 0, 2, 0, "IMAGE"]],
	groups: [],
	config: {},
	extra: {},
	version: 0.4,
}
