// The connection dropped in the middle of each step of a restore: the operator's laptop is gone (SIGKILL) as soon as a
// step says that it applies, and the same command is typed again. Nightly, because a whole server is restored as often
// as it has steps.
import { spawn } from "node:child_process"
import { join } from "node:path"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, expect, test } from "vitest"
import type { Instance } from "../support/instance/instance.ts"
import { describeWith } from "../support/parts.ts"
import { poll } from "../support/poll.ts"
import { openWholeServers, saidBy, type WholeServers } from "../support/whole-server.ts"
import { type Identity, inventoryOf } from "../support/workshop.ts"

/** What the firewall's limit remembers; written to, it forgets. */
const logins = "/proc/net/xt_recent/DEFAULT"
const program = fileURLToPath(new URL("../../bin/comfyume.js", import.meta.url))

describeWith("docker", "a restore whose connection drops", () => {
	let servers: WholeServers
	let identity: Identity
	let lost: string

	beforeAll(async () => {
		servers = await openWholeServers()
		const first = await servers.freshServer("first", { images: true })
		servers.pointAt(first)
		const fingerprint = await servers.workshop.consoleFingerprint(first)
		const fresh = ["--host-fingerprint", fingerprint, "--format-scratch", servers.scratchDevice]
		const made = await servers.comfyume("restore", "--first", ...fresh)
		expect(made.exitCode, made.all).toBe(0)
		identity = await servers.identityOf(first)
		servers.pointAt(first, identity)
		expect((await servers.comfyume("restore", "--only", "machine")).exitCode).toBe(0)
		const backup = await servers.comfyume("backup")
		expect(backup.exitCode, backup.all).toBe(0)
		lost = inventoryOf(first)
		await first.destroy()
	})
	afterAll(() => servers?.[Symbol.asyncDispose]())

	test("in each of its steps is typed again until it is done, and all is back", async () => {
		const server = await servers.freshServer("second")
		servers.pointAt(server, identity)
		const { workshop, manifest, scratchDevice } = servers
		const words = [
			...["restore", "--env", workshop.environmentName, "--manifest", manifest, "--identity-is-free"],
			...["--host-fingerprint", await workshop.consoleFingerprint(server)],
			...["--format-scratch", scratchDevice, "--json", "--config", join(workshop.laptop, "comfyume.yaml")],
		]
		const dropped: string[] = []
		let ended: Awaited<ReturnType<typeof restoreUntil>>
		do {
			// The firewall turns away who logs in as often as this within half a minute.
			await server.run(["sh", "-c", `[ ! -e ${logins} ] || echo / >${logins}`])
			ended = await restoreUntil(words, workshop.laptop, (step) => !dropped.includes(step))
			if (ended.stoppedAt !== undefined) dropped.push(ended.stoppedAt)
			await nobodyWorksOn(server)
		} while (ended.stoppedAt !== undefined && dropped.length < 150)

		const said = saidBy(ended)
		expect(said.exitCode, said.all).toBe(0)
		expect(inventoryOf(server)).toBe(lost)
		const verified = await servers.comfyume("verify")
		expect(verified.exitCode, verified.all).toBe(0)
		console.log(`dropped in ${dropped.length} steps: ${dropped.join(", ")}`)
		// One of each part, and no step was left out.
		expect(dropped).toEqual(
			expect.arrayContaining([
				"packages",
				"share",
				"scratch",
				"ssh-host-keys",
				"tailscale-identity",
				"ufw",
				"stack/start/user003",
			]),
		)
	}, 3_600_000)
})

/** Runs the laptop's comfyume to its end, or until a step of these applies something: then it is killed. */
function restoreUntil(words: readonly string[], laptop: string, isToDrop: (step: string) => boolean) {
	return new Promise<{ exitCode: number; stdout: string; stderr: string; stoppedAt?: string }>((resolve) => {
		const child = spawn(process.execPath, [program, ...words], {
			cwd: laptop,
			env: { PATH: process.env.PATH, HOME: laptop, TERM: "dumb" },
			stdio: ["ignore", "pipe", "pipe"],
		})
		let stdout = ""
		let stderr = ""
		let stoppedAt: string | undefined
		child.stderr.setEncoding("utf8").on("data", (text: string) => {
			stderr += text
		})
		createInterface({ input: child.stdout }).on("line", (line) => {
			stdout += `${line}\n`
			if (stoppedAt !== undefined || !line.includes('"applying"')) return
			const { event, step } = JSON.parse(line) as { event: string; step: string }
			if (event !== "applying" || !isToDrop(step)) return
			stoppedAt = step
			child.kill("SIGKILL")
		})
		child.on("close", (code) =>
			resolve({ exitCode: code ?? -1, stdout, stderr, ...(stoppedAt === undefined ? {} : { stoppedAt }) }),
		)
	})
}

/** Resolves once the host's side of a dropped run has ended. */
const nobodyWorksOn = (server: Instance) =>
	poll(
		async () =>
			(await server.run(["pgrep", "-f", "comfyume.*--session"], { allowedExitCodes: "any" })).exitCode === 1,
		{ what: `the end of the dropped run on ${server.name}`, deadlineMs: 120_000, intervalMs: 100 },
	)
