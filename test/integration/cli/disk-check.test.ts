// How full file systems are: real ones, mounted small and filled.
import { execFileSync } from "node:child_process"
import { mkdirSync, writeFileSync } from "node:fs"
import { afterEach, beforeEach, expect, test } from "vitest"
import type { Event } from "../../../src/lib/plan/events.ts"
import { createWorld, type Ended, type World } from "../../support/cli.ts"
import { describeWith } from "../../support/parts.ts"

const mebibyte = 1024 ** 2
let world: World
let mounted: string[] = []

describeWith("instances", "disk-check", () => {
	beforeEach(async () => {
		mounted = []
		world = await createWorld()
	})
	afterEach(async () => {
		for (const directory of mounted.reverse()) execFileSync("umount", [directory])
		await world[Symbol.asyncDispose]()
	})

	const mount = (directory: string, ...words: string[]) => {
		mkdirSync(directory, { recursive: true })
		execFileSync("mount", [...words, directory])
		mounted.push(directory)
		return directory
	}
	const small = (directory: string, options = "size=10m") =>
		mount(directory, "-t", "tmpfs", "-o", options, "tmpfs")
	const fill = (directory: string, bytes: number) =>
		writeFileSync(`${directory}/filling`, Buffer.alloc(bytes))
	const of = ({ events }: Ended, path: string) =>
		events.find(
			(event): event is Extract<Event, { event: "file-system" }> =>
				event.event === "file-system" && event.paths.includes(path),
		)
	const check = (...words: string[]) => world.run(["disk-check", ...words, "--json"])

	test("a share that fills up is said, then ends with 3, and with --block with 7", async () => {
		small(world.share)
		fill(world.share, 5 * mebibyte)
		expect(of(await check("--critical", "100"), world.share)).toMatchObject({
			...{ level: "ok", usedPercent: 50, sizeBytes: 10 * mebibyte, freeBytes: 5 * mebibyte },
			source: "tmpfs",
		})
		const warned = await check("--warn", "40", "--critical", "100")
		expect([warned.exitCode, of(warned, world.share)?.level]).toEqual([0, "warning"])
		expect(warned.stdout).toContain("more than 40 %")
		fill(world.share, 9.5 * mebibyte)
		const critical = await check("--critical", "94")
		expect([critical.exitCode, of(critical, world.share)?.level]).toEqual([3, "critical"])
		expect((await check("--critical", "94", "--block")).exitCode).toBe(7)
	})

	test("inodes that run out count as bytes do", async () => {
		small(world.share, "size=10m,nr_inodes=20")
		for (let index = 0; index < 18; index++) writeFileSync(`${world.share}/${index}`, "")
		const ended = await check("--critical", "94")
		expect(ended.exitCode, ended.stdout).toBe(3)
		expect(of(ended, world.share)).toMatchObject({ level: "critical", usedPercent: 0, inodesUsedPercent: 95 })
	})

	test("a file system is measured once, whatever lies on it", async () => {
		const { events } = await check("--critical", "100")
		const systems = events.filter(({ event }) => event === "file-system")
		expect(systems).toHaveLength(1)
		expect(systems[0]).toMatchObject({
			paths: ["/", world.share, "/var/lib/comfyume/work", "/tmp"],
		})
	})

	test("what should be mounted and isn't is no file system: the root disk is not measured in its place", async () => {
		const [sfs, scratch] = [world.path("sfs"), world.path("scratch")]
		for (const directory of [`${sfs}/outputs`, scratch]) mkdirSync(directory, { recursive: true })
		world.configure((text) =>
			text.replace(/connection: directory\n +directory: .\/server/, "address: 203.0.113.10").replace(
				"{ filesystem: directory, directory: ./share }",
				`{ filesystem: bind, mount: "sudo mount --bind ${world.share} ${sfs}" }
    scratch: { device: /dev/vdb, path: ${scratch} }
    stack: { paths: { shareOutputs: ${sfs}/outputs, outputs: ${scratch}/outputs, inputs: ${scratch}/inputs } }`,
			),
		)
		const ended = await check("--here", "--critical", "100")
		expect(ended.exitCode, ended.stdout).toBe(4)
		for (const path of [sfs, scratch]) expect(of(ended, path)).toBeUndefined()
		expect(of(ended, `${sfs}/outputs`)).toBeUndefined()
		expect(ended.stdout).toContain(`the share is not mounted at ${sfs}`)
		expect(ended.stdout).toContain(`the scratch disk is not mounted at ${scratch}`)
		const required = await check("--here", "--require", "1k", `${sfs}/outputs`)
		expect(required.exitCode, required.stdout).toBe(4)

		mount(sfs, "--bind", small(world.path("volume")))
		small(scratch)
		const again = await check("--here", "--critical", "100")
		expect(again.exitCode, again.stdout).toBe(0)
		expect(of(again, sfs)).toMatchObject({ sizeBytes: 10 * mebibyte, paths: [sfs, `${sfs}/outputs`] })
		expect(of(again, scratch)?.paths).toEqual([scratch, `${scratch}/outputs`, `${scratch}/inputs`])
	})

	test("--require asks for room in these places and no others", async () => {
		small(world.share)
		small(world.path("server/mnt/data"))
		fill(world.share, 9.9 * mebibyte)
		expect((await check("--require", "5MiB", "/mnt/data", "/mnt", "1k", "/")).exitCode).toBe(0)
		const short = await check("--require", "20MiB", "/mnt/data")
		expect(short.exitCode).toBe(7)
		expect(short.stdout).toContain("10.0 MiB are free on tmpfs, 20.0 MiB are needed")
		const missing = await check("--require", "1k", "/mnt/nowhere")
		expect(missing.exitCode).toBe(2)
		expect(missing.stdout).toContain("there is no /mnt/nowhere on app-1")
		for (const words of [["/mnt"], ["5MiB"], ["much", "/mnt"], ["5MiB", "6MiB", "/mnt"], ["5MiB", "mnt"]])
			expect((await check("--require", ...words)).exitCode, words.join(" ")).toBe(2)
		expect((await check("--warn", "900")).exitCode).toBe(2)
	})
})
