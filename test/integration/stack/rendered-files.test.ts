// What is rendered, read by the programs that it is for: nginx and compose.
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { afterEach, beforeEach, expect, test } from "vitest"
import { Secret } from "../../../src/lib/secret.ts"
import { quoteForEnvFile } from "../../../src/lib/stack/env-render.ts"
import { nginxPlaces, renderNginxMain, renderNginxSite } from "../../../src/lib/stack/nginx.ts"
import { mainConfiguration, makeCertificate } from "../../support/front-door.ts"
import { composeProgram, describeWith } from "../../support/parts.ts"
import { run } from "../../support/run.ts"
import { renderedFor, stackFor } from "../../support/stack.ts"

let directory = ""
beforeEach(() => {
	directory = mkdtempSync(join(tmpdir(), "comfyume-rendered-"))
	chmodSync(directory, 0o755)
})
afterEach(() => rmSync(directory, { recursive: true, force: true }))

const write = (path: string, text: string) => {
	mkdirSync(dirname(join(directory, path)), { recursive: true })
	writeFileSync(join(directory, path), text)
}

describeWith("nginx", "nginx takes what is rendered", () => {
	test.each([
		[1, "container"],
		[20, "container"],
		[500, "container"],
		[1, "host"],
		[20, "host"],
		[500, "host"],
	] as const)("for %i users with nginx in the %s mode, without a warning", async (users, nginx) => {
		const stack = stackFor(users, { nginx })
		for (const { path, text } of renderedFor(stack)) write(path, text)
		await makeCertificate(join(directory, "certificates"))
		mkdirSync(join(directory, "temporary"))
		// The places are this test's; everything else is as on a server.
		const places = {
			...nginxPlaces(stack),
			configuration: join(directory, "nginx"),
			certificates: join(directory, "certificates"),
		}
		write("nginx/comfyume.conf", renderNginxSite(stack, places))
		const main =
			nginx === "container"
				? renderNginxMain(places)
						.replace("/run/nginx.pid", `${directory}/nginx.pid`)
						.replace("/dev/stdout", `${directory}/access.log`)
				: mainConfiguration(directory)
		write("nginx.conf", main)
		const { stderr } = await run("/usr/sbin/nginx", ["-t", "-c", join(directory, "nginx.conf")])
		expect(stderr).toContain("test is successful")
		expect(stderr).not.toMatch(/\[(warn|error|emerg)\]/)
	})
})

type Configured = {
	services: Record<string, { environment: Record<string, string>; volumes: { source: string }[] }>
}

describeWith("compose", "compose takes what is rendered", () => {
	const config = async (): Promise<Configured> => {
		const { stdout, stderr } = await run(
			composeProgram(),
			["-f", "compose.yaml", "--profile", "*", "config", "--format", "json"],
			{ workingDirectory: directory, environment: { PATH: process.env["PATH"], HOME: directory } },
		)
		// "variable is not set", and that is how passwords were cut off.
		expect(stderr).toBe("")
		// What it prints is a compose file again, with every `$` doubled.
		return JSON.parse(stdout.replaceAll("$$", "$")) as Configured
	}

	test.each([
		[1, "container"],
		[20, "container"],
		[500, "container"],
		[20, "host"],
	] as const)("for %i users with nginx in the %s mode, without a warning", async (users, nginx) => {
		const stack = stackFor(users, { nginx })
		for (const { path, text } of renderedFor(stack)) write(path, text)
		const { services } = await config()
		// The worker of the profile gpu and its agent besides.
		expect(Object.keys(services).length).toBe(users + (nginx === "container" ? 5 : 4) + 2)
		const token = services["user001"]?.environment["QUEUE_MANAGER_TOKEN"]
		expect(token).toMatch(/^frontend:user001:1:[A-Za-z0-9_-]{43}$/)
	})

	test("refuses to start without a secret, and names the command that makes it", async () => {
		for (const { path, text } of renderedFor(stackFor(1)))
			write(path, path === ".env" ? text.replace(/^PROXY_SECRET=.*$/m, "") : text)
		await expect(config()).rejects.toThrow(/PROXY_SECRET.*comfyume env render/s)
	})

	test("hands on values with $, #, quotes and spaces as they were meant, and paths too", async () => {
		const values = {
			SERVERLESS_API_KEY: `a$b\${HOME}$$c #d "e" \\n f\`g\` !h&;|<>*?`,
			SERVERLESS_ENDPOINT: "$HOME",
			SERVERLESS_ACTIVE: "# no comment",
			QUEUE_MODE: `""`,
			JOB_TIMEOUT: " 1 ",
		}
		const existing = Object.entries(values)
			.map(([name, value]) => `${name}=${quoteForEnvFile(name, value)}\n`)
			.join("")
		const outputs = "/mnt/$HOME/out $$ {puts} #1"
		const stack = stackFor(2)
		const paths = { ...stack.configuration.paths, outputs }
		for (const { path, text } of renderedFor(stackFor(2, { paths }), existing)) write(path, text)
		const { services } = await config()
		expect(services["queue-manager"]?.environment).toMatchObject(values)
		expect(services["user002"]?.volumes.map(({ source }) => source)).toContain(`${outputs}/user002`)
	})
})

test("a value that no two readers take alike is refused, and not shown", () => {
	for (const value of ["it's", "two\nlines", "carriage\rreturn", "zero\0byte"]) {
		const secret = new Secret(value)
		expect(() => quoteForEnvFile("NAME", secret.reveal())).toThrow(/^NAME holds a single quote/)
		expect(() => quoteForEnvFile("NAME", secret.reveal())).not.toThrow(value)
	}
})
