// Two machines with a kernel lock between them: one share, bound into both, and one bucket. (The share's lock is the same
// kernel's here; that a server of NFS hands it over when a client is gone isn't shown by this.)
import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, expect, test } from "vitest"
import type { Instance } from "../support/instance/instance.ts"
import { describeWith } from "../support/parts.ts"
import { poll } from "../support/poll.ts"
import { storedIn, wrongWith } from "../support/snapshots.ts"
import { openWorkshop, type Workshop } from "../support/workshop.ts"

describeWith("instances", "two hosts of one environment", () => {
	let workshop: Workshop
	let app: Instance
	let gpu: Instance

	beforeAll(async () => {
		workshop = await openWorkshop()
		const both = await Promise.all([workshop.freshInstance("app"), workshop.freshInstance("gpu")])
		;[app, gpu] = both
		for (const [index, instance] of both.entries()) {
			const identity = await workshop.makeServer(instance)
			await workshop.pointAt(instance, identity)
			const look = await workshop.comfyume("backup", "--env", "rehearsal", "--dry-run")
			expect(look.exitCode, look.stderr).toBe(0)
			await workshop.installConfiguration(instance, identity)
			const file = join(instance.root, "etc/comfyume/comfyume.yaml")
			const text = readFileSync(file, "utf8")
			const other = `      - { name: ${["gpu-1", "app-1"][index]}, role: worker, address: 203.0.113.9 }\n`
			const named = text.replace("name: app-1", `name: ${["app-1", "gpu-1"][index]}`)
			writeFileSync(file, named.replace("    backups:", `${other}    backups:`))
			writeFileSync(
				join(instance.root, "etc/comfyume/environment"),
				`rehearsal ${["app-1", "gpu-1"][index]}\n`,
			)
		}
	})
	afterAll(() => workshop?.[Symbol.asyncDispose]())

	const backup = (instance: Instance, ...words: string[]) => {
		const [release = ""] = readdirSync(join(instance.root, "opt/comfyume"))
		return instance.run([`/opt/comfyume/${release}/bin/comfyume`, "backup", "--json", ...words], {
			allowedExitCodes: "any",
			timeoutMs: 240_000,
		})
	}
	const ownersIn = async (place: string) =>
		new Set(
			(await storedIn(workshop))
				.filter((one) => one.place === place && one.key.endsWith(".json"))
				.map(({ content }) => JSON.parse(content.toString()) as { host: string; artifact: string })
				.map(({ host, artifact }) => `${host} ${artifact}`),
		)

	test("both back up at once, and each finds its own everywhere", async () => {
		const ran = await Promise.all([backup(app), backup(gpu)])
		for (const { exitCode, stdout, stderr } of ran) expect(exitCode, stdout + stderr).toBe(0)
		expect(wrongWith(await storedIn(workshop))).toEqual([])
		for (const place of ["share", "r2"]) {
			const owners = await ownersIn(place)
			for (const artifact of ["fail2ban", "home", "project", "env-file"])
				for (const host of ["app-1", "gpu-1"]) expect(owners).toContain(`${host} ${artifact}`)
		}
		const again = await Promise.all([backup(app), backup(gpu)])
		for (const { exitCode, stdout } of again) {
			expect(exitCode, stdout).toBe(0)
			expect(stdout).not.toContain('"event":"applying"')
		}
	})

	test("one loses its power while it holds the lock: the other goes on, says whose it was, and nothing half counts", async () => {
		await app.run([
			"sh",
			"-c",
			"head -c 300000000 /dev/urandom >/home/dev/film; chown dev:dev /home/dev/film",
		])
		await gpu.run(["sh", "-c", "date >/home/dev/today; chown dev:dev /home/dev/today"])
		const lost = backup(app, "--only", "home").catch(() => undefined)
		const lock = join(workshop.share, "cache/backups/rehearsal/.comfyume.lock")
		await poll(() => /^\d+ backup of home, rehearsal app-1, /.test(readFileSync(lock, "utf8")), {
			what: "app-1 holds the lock",
			deadlineMs: 60_000,
			intervalMs: 5,
		})
		await app.destroy()
		await lost
		expect(readFileSync(lock, "utf8")).toMatch(/backup of home, rehearsal app-1/)
		const ran = await backup(gpu, "--only", "home")
		expect(ran.exitCode, ran.stdout + ran.stderr).toBe(0)
		expect(ran.stdout).toMatch(/taken over, since its holder is gone .*backup of home, rehearsal app-1/)
		// The lost one's archive may stand there whole or cut; without a sidecar it is none. All others are whole.
		const stored = await storedIn(workshop)
		const finished = new Set(stored.filter(({ key }) => key.endsWith(".json")).map(({ key }) => key))
		const counting = stored.filter(({ key }) => finished.has(key) || finished.has(`${key}.json`))
		expect(wrongWith(counting)).toEqual([])
		expect(stored.length - counting.length).toBeLessThan(2)
	})
})
