// The templates' own programs, run as they will be in a container.
import { spawn } from "node:child_process"
import { createHash } from "node:crypto"
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join, relative } from "node:path"
import { fileURLToPath } from "node:url"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { buildAuthGate } from "../../../scripts/build.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"
import { run } from "../../support/run.ts"
import { freePort } from "../../support/sshd.ts"

const repository = fileURLToPath(new URL("../../..", import.meta.url))
const templates = join(repository, "templates/stack")
let directory = ""
const at = (...parts: string[]) => join(directory, ...parts)

beforeEach(() => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-templates-"))
	for (const name of ["comfyui/user", "comfyui/custom_nodes", "workflows", "seeds/queue_redirect"])
		mkdirSync(at(name), { recursive: true })
	writeFileSync(at("workflows/a b.json"), "first")
	writeFileSync(at("seeds/queue_redirect/__init__.py"), "first")
})
afterEach(() => rmSync(directory, { recursive: true, force: true }))

describe("the frontend's entrypoint", () => {
	const enter = () =>
		run(join(templates, "frontend/entrypoint.sh"), ["echo", "started"], {
			environment: {
				PATH: process.env["PATH"],
				COMFYUI_DIRECTORY: at("comfyui"),
				WORKFLOWS_DIRECTORY: at("workflows"),
				SEED_NODES_DIRECTORY: at("seeds"),
			},
		})
	const workflow = () => at("comfyui/user/default/workflows/a b.json")
	const node = (...parts: string[]) => at("comfyui/custom_nodes", ...parts)
	const read = (path: string) => readFileSync(path, "utf8")

	test("brings workflows and nodes over, and newer ones after them, then starts what it is given", async () => {
		expect((await enter()).stdout).toBe("started\n")
		expect(read(workflow())).toBe("first")
		expect(read(node("queue_redirect/__init__.py"))).toBe("first")
		writeFileSync(at("workflows/a b.json"), "second")
		writeFileSync(at("seeds/queue_redirect/__init__.py"), "second")
		await enter()
		expect(read(workflow())).toBe("second")
		expect(read(node("queue_redirect/__init__.py"))).toBe("second")
	})

	test("leaves what the user has changed, removed or installed", async () => {
		mkdirSync(node("own_node"))
		writeFileSync(node("own_node/x.py"), "own")
		mkdirSync(at("seeds/own_node"))
		writeFileSync(at("seeds/own_node/x.py"), "ours")
		await enter()
		writeFileSync(workflow(), "changed by the user")
		writeFileSync(at("workflows/a b.json"), "second")
		await enter()
		expect(read(workflow())).toBe("changed by the user")
		expect(read(node("own_node/x.py"))).toBe("own")
	})

	test("doesn't bring back what the user has removed", async () => {
		await enter()
		rmSync(workflow())
		await enter()
		expect(existsSync(workflow())).toBe(false)
	})
})

describe("the frontend's extension", () => {
	const frontend = join(templates, "frontend")

	test("has a manifest that says what every file of it must be", async () => {
		const files = readdirSync(join(frontend, "custom_nodes/comfyume"), {
			recursive: true,
			withFileTypes: true,
		})
			.filter((entry) => entry.isFile() && !entry.name.endsWith(".pyc"))
			.map((entry) => relative(join(frontend, "custom_nodes"), join(entry.parentPath, entry.name)))
		const manifest = readFileSync(join(frontend, "comfyume.sha256"), "utf8")
		const listed = manifest.trim().split("\n")
		expect(listed.map((line) => line.slice(66)).sort()).toEqual(files.sort())
		const digests = files.map((name) =>
			createHash("sha256")
				.update(readFileSync(join(frontend, "custom_nodes", name)))
				.digest("hex"),
		)
		expect(listed.sort()).toEqual(files.map((name, index) => `${digests[index]}  ${name}`).sort())
	})
})

describe("the auth gate's image", () => {
	test("holds one bundled file that starts by itself", async () => {
		await buildAuthGate(at("bundle"))
		writeFileSync(at("htpasswd"), `user001:$2y$10$${"a".repeat(53)}\n`)
		const port = await freePort()
		const gate = spawn(process.execPath, [at("bundle/main.js")], {
			cwd: directory,
			env: {
				HOST: "127.0.0.1",
				PORT: String(port),
				HTPASSWD_FILE: at("htpasswd"),
				ADMIN_USERNAME: "admin",
				AUTH_COOKIE_SECRET: "made-up-cookie-secret-of-the-tests-0001",
			},
			stdio: "ignore",
		})
		try {
			const health = () =>
				fetch(`http://127.0.0.1:${port}/health`).then(
					(response) => response.json(),
					() => undefined,
				)
			expect(await poll(health, { what: "the gate answers", deadlineMs: 10_000 })).toEqual({
				status: "healthy",
				problem: null,
			})
		} finally {
			const ended = new Promise((resolve) => gate.once("exit", resolve))
			gate.kill("SIGTERM")
			expect(await ended).toBe(0)
		}
	})
})

describeWith("nginx", "the admin's stand-in", () => {
	test("has a configuration that nginx takes", async () => {
		const text = readFileSync(join(templates, "admin/nginx.conf"), "utf8").replaceAll(
			"/tmp/",
			`${directory}/`,
		)
		writeFileSync(at("nginx.conf"), text)
		const { stderr } = await run("/usr/sbin/nginx", ["-t", "-c", at("nginx.conf")])
		expect(stderr).toContain("test is successful")
	})
})
