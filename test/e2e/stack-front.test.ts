// nginx goes from its container to the host and back: exactly one of them serves, and a failed change leaves the old one.
import { existsSync, readlinkSync, rmSync, writeFileSync } from "node:fs"
import { request } from "node:https"
import { afterAll, beforeAll, expect, test } from "vitest"
import { startDocker } from "../support/docker.ts"
import { hostNginx } from "../support/host-nginx.ts"
import { describeWith } from "../support/parts.ts"
import { run } from "../support/run.ts"
import { type Engine, openWorkshop, standInImages, type Workshop } from "../support/small-stack.ts"

describeWith("docker", "nginx on the host or in its container", () => {
	let engine: Engine
	let images: Awaited<ReturnType<typeof standInImages>>
	let workshop: Workshop
	let nginx: ReturnType<typeof hostNginx>
	const toHost = "      nginx: host\n"
	const outcomeOf = (run: { outcomes: Readonly<Record<string, string>>; exitCode: number | null }) => ({
		exitCode: run.exitCode,
		nginx: run.outcomes["nginx"],
	})
	const configure = async (more: string) => {
		workshop.configure(more)
		const { exitCode, stderr } = await workshop.run(["generate-users"])
		expect(`${exitCode} ${stderr}`).toMatch(/^0 /)
	}
	/** Who serves, seen without comfyume: the process that holds the port, and a request by the workshop's name. */
	const servedBy = async () => {
		const { stdout } = await run("ss", ["-Hltnp", `sport = :${workshop.https}`])
		const program = /users:\(\("([^"]+)"/.exec(stdout)?.[1]
		return `${program} ${await ping(workshop.https)}`
	}

	beforeAll(async () => {
		engine = await startDocker()
		images = await standInImages(engine)
		workshop = await openWorkshop(engine, { users: 1 })
		nginx = hostNginx(workshop.path("server"))
		await configure("")
		const started = await workshop.run(["start", "--json"])
		expect(outcomeOf(started)).toEqual({ exitCode: 0, nginx: "applied" })
		expect(await servedBy()).toBe("docker-proxy 200 healthy")
	})
	afterAll(async () => {
		await nginx?.[Symbol.asyncDispose]()
		await workshop?.[Symbol.asyncDispose]()
		await images?.[Symbol.asyncDispose]()
		await engine?.[Symbol.asyncDispose]()
	})

	test("a host's nginx that can't start leaves the container serving, and the run ends with 9", async () => {
		await configure(toHost)
		nginx.breakStart()
		const { exitCode, stderr } = await workshop.run(["start", "--only", "nginx"])
		expect(exitCode).toBe(9)
		expect(stderr).toContain("the one before serves again")
		expect(await servedBy()).toBe("docker-proxy 200 healthy")
		expect(existsSync(workshop.path("server/etc/nginx/conf.d/comfyume.conf"))).toBe(false)
		expect(await nginx.isEnabled()).toBe(false)
		nginx.repairStart()
	})

	test("a configuration that the host's nginx refuses changes nothing", async () => {
		const other = workshop.path("server/etc/nginx/conf.d/zz-default.conf")
		const port = /listen (\d+) default_server/.exec(
			(await run("cat", [workshop.path("stack/nginx/host.conf")])).stdout,
		)?.[1]
		writeFileSync(other, `server { listen ${port} default_server; }\n`)
		const { exitCode, stderr } = await workshop.run(["start", "--only", "nginx"])
		expect(exitCode).toBe(3)
		expect(stderr).toContain("a duplicate default server")
		expect(stderr).toContain("rm /etc/nginx/sites-enabled/default")
		expect(await servedBy()).toBe("docker-proxy 200 healthy")
		await run("rm", [other])
	})

	test("the host's nginx takes over, once", async () => {
		const dry = await workshop.run(["start", "--dry-run", "--json"])
		expect(outcomeOf(dry)).toEqual({ exitCode: 0, nginx: "planned" })
		const first = await workshop.run(["start", "--json"])
		expect(outcomeOf(first)).toEqual({ exitCode: 0, nginx: "applied" })
		expect(await servedBy()).toBe("nginx 200 healthy")
		expect(readlinkSync(workshop.path("server/etc/nginx/conf.d/comfyume.conf"))).toBe(
			workshop.path("stack/nginx/host.conf"),
		)
		expect({ active: await nginx.isActive(), enabled: await nginx.isEnabled() }).toEqual({
			...{ active: true, enabled: true },
		})
		expect((await workshop.running()).has("comfy-nginx")).toBe(false)
		const second = await workshop.run(["start", "--json"])
		expect(outcomeOf(second)).toEqual({ exitCode: 0, nginx: "satisfied" })
		expect((await workshop.run(["status"])).exitCode).toBe(0)
	})

	test("a container that can't start leaves the host's nginx serving, and the run ends with 9", async () => {
		await configure("")
		const broken = "FROM nginx:1.28-alpine\nRUN rm -f /usr/sbin/nginx\n"
		await engine.docker("build", "--quiet", "--tag", "nginx:1.28-alpine", "-", { stdin: broken })
		const { exitCode, stderr } = await workshop.run(["start", "--only", "nginx", "--wait", "15"])
		expect(exitCode).toBe(9)
		expect(stderr).toContain("the one before serves again")
		expect(await servedBy()).toBe("nginx 200 healthy")
		expect(await nginx.isEnabled()).toBe(true)
		expect((await workshop.running()).has("comfy-nginx")).toBe(false)
	})

	test("the container takes over, and the host's nginx doesn't come back after a reboot", async () => {
		await images.restoreBase()
		const first = await workshop.run(["start", "--json"])
		expect(outcomeOf(first)).toEqual({ exitCode: 0, nginx: "applied" })
		expect(await servedBy()).toBe("docker-proxy 200 healthy")
		expect({ active: await nginx.isActive(), enabled: await nginx.isEnabled() }).toEqual({
			...{ active: false, enabled: false },
		})
	})

	test("a host's nginx of something else runs on where the container can't even be made", async () => {
		await engine.docker("rm", "--force", "comfy-nginx")
		await engine.docker("tag", "nginx:1.28-alpine", "test-nginx:1")
		await engine.docker("image", "rm", "--force", "nginx:1.28-alpine")
		rmSync(workshop.path("server/etc/nginx/conf.d/comfyume.conf"), { force: true })
		writeFileSync(
			workshop.path("server/etc/nginx/conf.d/other.conf"),
			`server { listen ${workshop.https}; return 200 "another site"; }\n`,
		)
		await nginx.enableNow()
		const { exitCode, stderr } = await workshop.run(["start", "--only", "nginx", "--wait", "15"])
		expect(`${exitCode} ${stderr}`).toMatch(/^9 /)
		expect({ active: await nginx.isActive(), enabled: await nginx.isEnabled() }).toEqual({
			...{ active: true, enabled: true },
		})
		await engine.docker("tag", "test-nginx:1", "nginx:1.28-alpine")
		await engine.docker("image", "rm", "test-nginx:1")
	})
})

function ping(port: number): Promise<string> {
	return new Promise((resolve) => {
		const servername = "workshop.example.test"
		const options = {
			host: "127.0.0.1",
			port,
			path: "/health/ping",
			servername,
			rejectUnauthorized: false,
			agent: false,
		}
		request({ ...options, headers: { host: `${servername}:${port}` } }, (response) => {
			let text = ""
			response.on("data", (chunk: Buffer) => {
				text += chunk
			})
			response.on("end", () => resolve(`${response.statusCode} ${text.trim()}`))
		})
			.on("error", (error) => resolve(error.message))
			.end()
	})
}
