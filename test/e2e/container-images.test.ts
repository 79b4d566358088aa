// Container images with a real Docker Engine: saved, lost, loaded, and damaged in every place that they lie in.
import { createHash } from "node:crypto"
import {
	copyFileSync,
	mkdirSync,
	mkdtempSync,
	readdirSync,
	readFileSync,
	rmSync,
	symlinkSync,
	writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { zstdCompressSync, zstdDecompressSync } from "node:zlib"
import { afterAll, afterEach, beforeAll, expect, test } from "vitest"
import { type Event, eventSchema } from "../../src/lib/plan/events.ts"
import { envFile, install, secrets } from "../support/cli.ts"
import { startDocker } from "../support/docker.ts"
import { describeWith, dockerPrograms } from "../support/parts.ts"
import { run } from "../support/run.ts"
import { type S3Server, startS3Server } from "../support/s3-server/index.ts"
import { flipBit } from "../support/sandbox.ts"

const frontend = "comfyume-frontend:v0.11.0"
const admin = "comfyume-admin:local"
const bucket = "image-backups"

describeWith("docker", "container images", () => {
	let engine: Awaited<ReturnType<typeof startDocker>>
	let s3: S3Server
	let directory = ""
	let launcher = ""
	/** What other tests have built under these names. */
	const before = new Map<string, string>()
	const path = (...parts: string[]) => join(directory, ...parts)

	beforeAll(async () => {
		engine = await startDocker()
		for (const name of [frontend, admin]) {
			const [id] = await engine.lines("images", "--quiet", "--no-trunc", name)
			if (id !== undefined) before.set(name, id)
		}
		directory = mkdtempSync(join(tmpdir(), "comfyume-images-"))
		for (const name of ["share", "server", "build", "home"]) mkdirSync(path(name))
		launcher = await install(path("program"))
		s3 = await startS3Server({
			buckets: ["cache-backups", bucket],
			credentials: [{ accessKeyId: secrets.R2_ACCESS_KEY_ID, secretAccessKey: secrets.R2_SECRET_ACCESS_KEY }],
		})
		writeFileSync(path("secrets.env"), envFile(secrets), { mode: 0o600 })
		writeFileSync(path("comfyume.yaml"), configuration(s3.endpoint))
		await build(frontend, "one")
		await build(admin, "admin")
	})
	afterEach(async () => {
		await engine.docker("rm", "--force", "try", { allowedExitCodes: "any" })
	})
	afterAll(async () => {
		for (const name of [frontend, admin]) {
			const id = before.get(name)
			if (id === undefined) await engine?.docker("rmi", "--force", name, { allowedExitCodes: "any" })
			else await engine?.docker("tag", id, name)
		}
		await s3?.close()
		await engine?.[Symbol.asyncDispose]()
		rmSync(directory, { recursive: true, force: true })
	})

	/** An image of two small layers that says a version when it runs. */
	const build = async (name: string, mark: string) => {
		copyFileSync(join(dockerPrograms(), "tini-static"), path("build/tini"))
		// It doesn't compress: a bit in the middle of the archive is one of its own.
		const noise = Array.from({ length: 4096 }, (_, at) =>
			createHash("sha256").update(`${mark} ${at}`).digest(),
		)
		writeFileSync(path("build/noise"), Buffer.concat(noise))
		const lines = ["FROM scratch", "COPY tini /tini", "COPY noise /noise", 'CMD ["/tini", "--version"]']
		writeFileSync(path("build/Dockerfile"), `${lines.join("\n")}\n`)
		await engine.docker("build", "--quiet", "--tag", name, path("build"))
	}
	const idOf = async (name: string) => {
		const asked = ["image", "inspect", "--format", "{{.Id}}", name]
		const { exitCode, stdout } = await engine.docker(...asked, { allowedExitCodes: "any" })
		return exitCode === 0 ? stdout.trim() : undefined
	}
	/** The image is gone, and nothing that was built from it is left to make it of. */
	const lose = async (name: string) => {
		await engine.docker("rmi", "--force", name)
		expect(await idOf(name)).toBeUndefined()
	}
	const comfyume = (...words: string[]) => comfyumeWith({}, ...words)
	const comfyumeWith = async (variables: Readonly<Record<string, string>>, ...words: string[]) => {
		const spoken = ["--env", "sandbox", "--config", path("comfyume.yaml"), "--json"]
		const { exitCode, stdout, stderr } = await run(process.execPath, [launcher, ...words, ...spoken], {
			environment: {
				PATH: engine.environment.PATH,
				HOME: path("home"),
				DOCKER_HOST: engine.environment.DOCKER_HOST,
				DOCKER_CONFIG: engine.environment.DOCKER_CONFIG,
				...variables,
			},
			allowedExitCodes: "any",
		})
		const events = stdout
			.split("\n")
			.filter(Boolean)
			.map((line): Event => eventSchema.parse(JSON.parse(line)))
		return {
			exitCode,
			stderr,
			said: events
				.flatMap((event) =>
					event.event === "note" ? [event.text] : event.event === "step" ? [event.because ?? ""] : [],
				)
				.join("\n"),
			outcomes: Object.fromEntries(
				events.flatMap((event) => (event.event === "step" ? [[event.step, event.outcome]] : [])),
			),
		}
	}
	const puts = () => s3.log.filter(({ method }) => method === "PUT").length
	const stored = (name: string, ending: string) => {
		const at = path("share/cache/backups/sandbox", name)
		const found = readdirSync(at).filter((file) => file.endsWith(ending) && !file.startsWith("."))
		return found.sort().map((file) => join(at, file))
	}
	const newest = (name: string, ending: string) => stored(name, ending).at(-1) ?? ""

	test("each image is stored once and proven; unchanged it costs no put", async () => {
		const first = await comfyume("backup", "--only", "container-images")
		expect(first.outcomes).toEqual({ "image-admin": "applied", "image-frontend": "applied" })
		expect(first.exitCode).toBe(0)
		const sidecar = JSON.parse(readFileSync(newest("image-frontend", ".json"), "utf8"))
		expect(sidecar).toMatchObject({ kind: "image", image: frontend, imageId: await idOf(frontend) })
		const archive = readFileSync(newest("image-frontend", ".zst"))
		expect(createHash("sha256").update(archive).digest("hex")).toBe(sidecar.digest)
		expect(zstdDecompressSync(archive)).toHaveLength(sidecar.unpackedBytes)
		expect(s3.objects.keys(bucket)).toHaveLength(4)
		expect(s3.objects.keys("cache-backups")).toEqual([])
		expect(readdirSync(path("server/var/lib/comfyume/work"))).toEqual([])

		const already = puts()
		const second = await comfyume("backup", "--only", "container-images")
		expect(second.outcomes).toEqual({ "image-admin": "satisfied", "image-frontend": "satisfied" })
		expect(puts()).toBe(already)
	})

	test("a drill proves the layers of each, from each destination, and loads none", async () => {
		await engine.docker("tag", frontend, "try:1")
		await engine.docker("rmi", frontend)
		const good = await comfyume("backup", "drill", "--only", "container-images")
		expect(good.outcomes).toMatchObject({ "image-frontend/share": "applied", "image-admin/r2": "applied" })
		expect(good.exitCode).toBe(0)
		expect(await idOf(frontend)).toBeUndefined()
		await engine.docker("tag", "try:1", frontend)
		await engine.docker("rmi", "try:1")

		const archive = newest("image-frontend", ".zst")
		flipBit(archive)
		const bad = await comfyume("backup", "drill", "--only", "container-images")
		flipBit(archive)
		expect(bad.exitCode).toBe(3)
		expect(bad.outcomes).toMatchObject({ "image-frontend/share": "failed", "image-frontend/r2": "applied" })
	})

	test("a lost image comes back from the share as it was, and runs; a second restore applies nothing", async () => {
		const id = await idOf(frontend)
		await lose(frontend)
		const restored = await comfyume("restore", "--only", "container-images")
		expect(restored.outcomes).toMatchObject({ "image-admin": "satisfied", "image-frontend": "applied" })
		expect(restored.exitCode).toBe(0)
		expect(await idOf(frontend)).toBe(id)
		expect((await engine.docker("run", "--name", "try", frontend)).stdout).toContain("tini version")
		const again = await comfyume("restore", "--only", "container-images")
		expect(again.outcomes).toMatchObject({ "image-admin": "satisfied", "image-frontend": "satisfied" })
	})

	test("with a flipped bit on the share it comes from R2, and the share's copy is healed", async () => {
		const id = await idOf(frontend)
		const archive = newest("image-frontend", ".zst")
		const good = readFileSync(archive)
		flipBit(archive)
		await lose(frontend)
		const { exitCode, said } = await comfyume("restore", "--only", "image-frontend")
		expect(exitCode).toBe(0)
		expect(said).toContain("skipped share")
		expect(said).toContain("healed share")
		expect(await idOf(frontend)).toBe(id)
		expect(readFileSync(archive).equals(good)).toBe(true)
	})

	test("an archive whose sidecar fits it, and whose layer is another, is loaded from nowhere", async () => {
		const archive = newest("image-admin", ".zst")
		const plain = zstdDecompressSync(readFileSync(archive))
		const noise = createHash("sha256").update("admin 2000").digest()
		const at = plain.indexOf(noise)
		expect(at).toBeGreaterThan(0)
		plain[at] = (plain[at] ?? 0) ^ 1
		const sidecarFile = newest("image-admin", ".json")
		const [good, goodSidecar] = [readFileSync(archive), readFileSync(sidecarFile)]
		const forged = zstdCompressSync(plain)
		const digest = createHash("sha256").update(forged).digest("hex")
		// Name, size and digest fit: only what is in it tells.
		const name = (file: string) => file.replace(/[0-9a-f]{12}(?=\.tar)/, digest.slice(0, 12))
		rmSync(archive)
		rmSync(sidecarFile)
		writeFileSync(name(archive), forged)
		const sidecar = { ...JSON.parse(goodSidecar.toString()), digest, sizeBytes: forged.length }
		writeFileSync(name(sidecarFile), JSON.stringify(sidecar))
		const id = await idOf(admin)
		await lose(admin)
		const { exitCode, outcomes, said } = await comfyume("restore", "--only", "image-admin", "--from", "share")
		expect({ exitCode, outcomes }).toMatchObject({ exitCode: 3, outcomes: { "image-admin": "failed" } })
		expect(said).toContain("doesn't hold what its name says")
		expect(await idOf(admin)).toBeUndefined()

		rmSync(name(archive))
		rmSync(name(sidecarFile))
		writeFileSync(archive, good)
		writeFileSync(sidecarFile, goodSidecar)
		expect((await comfyume("restore", "--only", "image-admin")).exitCode).toBe(0)
		expect(await idOf(admin)).toBe(id)
	})

	test("an image that was built anew is stored anew; in use it stays, and --at puts the dated one back", async () => {
		const old = await idOf(frontend)
		const { takenAt } = JSON.parse(readFileSync(newest("image-frontend", ".json"), "utf8"))
		await build(frontend, "two")
		const fresh = await idOf(frontend)
		const left = await comfyume("restore", "--only", "image-frontend")
		expect(left.outcomes).toMatchObject({ "image-frontend": "satisfied" })
		expect(left.said).toContain("--at puts a snapshot back")
		expect(await idOf(frontend)).toBe(fresh)
		expect((await comfyume("backup", "--only", "image-frontend")).outcomes).toEqual({
			"image-frontend": "applied",
		})
		expect(stored("image-frontend", ".zst")).toHaveLength(2)
		const back = await comfyume("restore", "--only", "image-frontend", "--at", takenAt)
		expect(back.outcomes).toEqual({ "image-frontend": "applied" })
		expect(await idOf(frontend)).toBe(old)
		// What had the name is still there.
		expect((await engine.docker("image", "inspect", fresh ?? "")).exitCode).toBe(0)
	})

	test("an image that is gone is no failure of a backup, and status says what the newest snapshot is", async () => {
		await lose(admin)
		const { exitCode, outcomes, said } = await comfyume("backup", "--only", "image-admin")
		expect({ exitCode, outcomes }).toEqual({ exitCode: 0, outcomes: { "image-admin": "satisfied" } })
		expect(said).toContain("comfyume start --build makes it")
		const status = await comfyume("backup", "status", "--only", "container-images")
		expect(status.exitCode).toBe(0)
		expect(status.outcomes).toMatchObject({
			"image-admin/share": "satisfied",
			"image-frontend/r2": "satisfied",
		})
	})

	test("a Docker that gives no answer fails the images' steps, and no other", async () => {
		const silent = { DOCKER_HOST: `unix://${path("nobody.sock")}` }
		for (const command of ["backup", "restore"]) {
			const { exitCode, outcomes, said } = await comfyumeWith(
				silent,
				command,
				"--only",
				"image-frontend,nginx",
			)
			expect({ exitCode, outcomes }).toMatchObject({
				exitCode: 4,
				outcomes: { "image-frontend": "failed", nginx: "satisfied" },
			})
			expect(said).toContain("Docker gives no answer on app-1")
		}
	})

	test("without Docker there is nothing to back up; what snapshots there are can't be restored, and it says so", async () => {
		mkdirSync(path("bin"))
		for (const program of readdirSync("/usr/bin"))
			if (program !== "docker") symlinkSync(join("/usr/bin", program), path("bin", program))
		const without = { PATH: path("bin") }
		const backup = await comfyumeWith(without, "backup", "--only", "container-images")
		expect(backup.outcomes).toEqual({ "image-admin": "satisfied", "image-frontend": "satisfied" })
		const restore = await comfyumeWith(without, "restore", "--only", "image-frontend")
		expect(restore.outcomes).toMatchObject({ "image-frontend": "failed" })
		expect(restore.said).toContain("docker is not installed on app-1, and there are snapshots of it")
		expect(restore.exitCode).toBe(3)
	})

	const configuration = (endpoint: string) => `version: 1
environments:
  sandbox:
    domain: workshop.example.test
    allowStandIns: true
    allowPlainHttp: true
    hosts: [{ name: app-1, role: app, connection: directory, directory: ./server }]
    share: { filesystem: directory, directory: ./share }
    objectStore:
      provider: s3
      buckets:
        cache: { bucket: cache-backups, endpoint: "${endpoint}" }
        images: { bucket: ${bucket}, endpoint: "${endpoint}" }
    git:
      project: { remote: ./project.git, branch: main, path: /project }
      scripts: { remote: ./scripts.git, branch: main, path: /scripts }
    backups: { without: [image-queue-manager, image-auth-gate, image-nginx, image-redis] }
    stack: { directory: ${directory}/stack, users: 1 }
`
})
