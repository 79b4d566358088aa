// `comfyume doctor`: each thing that is wrong with the places of backups is told by its name, with its fix.
import { execFileSync } from "node:child_process"
import { mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest"
import { bucket, createWorld, type Ended, inventory, secrets, type World } from "../../support/cli.ts"
import { describeWith } from "../../support/parts.ts"
import { type S3Server, type S3ServerOptions, startS3Server } from "../../support/s3-server/index.ts"

const keys = { accessKeyId: secrets.R2_ACCESS_KEY_ID, secretAccessKey: secrets.R2_SECRET_ACCESS_KEY }

let world: World
let other: S3Server | undefined
beforeAll(async () => {
	world = await createWorld()
	expect((await world.run(["backup"])).exitCode).toBe(0)
})
afterAll(() => world?.[Symbol.asyncDispose]())
afterEach(async () => {
	world.configure()
	await other?.close()
	other = undefined
})

/** A bucket beside the world's, on a server of its own kind. */
async function bucketThat(options: Partial<S3ServerOptions>): Promise<S3Server> {
	other = await startS3Server({ buckets: [bucket], credentials: [keys], ...options })
	const { endpoint } = other
	world.configure((text) => text.replace(world.s3.endpoint, endpoint))
	return other
}

const step = ({ events }: Ended, id: string) =>
	events.flatMap((event) => (event.event === "step" && event.step === id ? [event] : []))[0]
const notes = ({ events }: Ended) =>
	events.flatMap((event) => (event.event === "note" ? [event.text] : [])).join("\n")

test("a locked bucket and a share as it should be: 0, and nothing is written anywhere", async () => {
	const s3 = await bucketThat({ deletes: "locked" })
	const before = inventory(world.directory, ["package"])
	const ended = await world.run(["doctor", "--json"])
	expect(ended.exitCode, ended.stdout).toBe(0)
	expect(step(ended, "cache/lock")?.because).toBe("COMPLIANCE: everything, for 400 d")
	expect(step(ended, "share/room")?.because).toMatch(/free, \d+ % used; .* inodes?/)
	expect(inventory(world.directory, ["package"])).toEqual(before)
	expect(s3.log.length).toBeGreaterThan(1)
	expect(s3.log.filter(({ method }) => method !== "GET")).toEqual([])
})

test("a bucket that nothing locks fails, and the way to lock it is said", async () => {
	const ended = await world.run(["doctor", "--storage", "--json"])
	expect(ended.exitCode, ended.stdout).toBe(3)
	expect(step(ended, "cache/lock")).toMatchObject({
		outcome: "failed",
		because: expect.stringMatching(
			/cache-backups is not locked: none of its rules covers sandbox\/ \(it has no rule\)/,
		),
		hint: expect.stringMatching(/put-object-lock-configuration/),
	})
	expect(ended.outcomes["cache/reached"]).toBe("satisfied")
})

describe("the attempt to delete", () => {
	test("is made by nobody who isn't asked: without an answer it is refused, and nothing is stored", async () => {
		const s3 = await bucketThat({ deletes: "allowed" })
		const ended = await world.run(["doctor", "--probe-delete"])
		expect(ended.exitCode, ended.stderr).toBe(8)
		expect(ended.stderr).toMatch(/add --yes/)
		expect(s3.log).toEqual([])
	})

	test("is only announced by a dry run", async () => {
		const s3 = await bucketThat({ deletes: "locked" })
		const ended = await world.run(["doctor", "--probe-delete", "--dry-run", "--json"])
		expect([ended.exitCode, ended.outcomes["cache/probe"]], ended.stdout).toEqual([0, "planned"])
		expect(s3.objects.keys(bucket)).toEqual([])
	})

	test("proves that the bucket is append-only", async () => {
		const s3 = await bucketThat({ deletes: "locked" })
		const ended = await world.run(["doctor", "--probe-delete", "--yes", "--json"])
		expect(ended.exitCode, ended.stdout).toBe(0)
		expect(step(ended, "cache/probe")?.because).toMatch(
			/^proven append-only: its lock refused to delete sandbox/,
		)
		expect(s3.objects.keys(bucket)).toEqual([
			expect.stringMatching(/^sandbox\/records\/probes\/app-1\/\d{8}T\d{6}Z-\w+\.json$/),
		])
		expect(s3.log.filter(({ operation }) => /Delete/.test(operation))).toHaveLength(1)
	})

	test.each(["allowed", "versioned"] as const)("fails where deletes are %s", async (deletes) => {
		await bucketThat({ deletes })
		const ended = await world.run(["doctor", "--probe-delete", "--yes", "--json"])
		expect(ended.exitCode, ended.stdout).toBe(3)
		expect(step(ended, "cache/probe")).toMatchObject({
			outcome: "failed",
			because: expect.stringMatching(/is not locked|hides what is deleted/),
			hint: expect.stringMatching(/Bucket lock rules/),
		})
	})

	test("of credentials that may not delete is said to prove no lock", async () => {
		await bucketThat({ deletes: "denied" })
		const ended = await world.run(["doctor", "--probe-delete", "--yes", "--json"])
		expect(step(ended, "cache/probe")?.because, ended.stdout).toMatch(/may not delete .* is not proven/)
	})
})

describe("what is wrong with a bucket", () => {
	const wrong: [string, (text: string) => string, Partial<S3ServerOptions>, number, RegExp][] = [
		["a key that nobody knows", (text) => text, { credentials: [] }, 6, /there is no such access key ID/],
		[
			"a secret of another key",
			(text) => text,
			{ credentials: [{ ...keys, secretAccessKey: "x" }] },
			6,
			/the signature is wrong/,
		],
		[
			"a token that may not list",
			(text) => text,
			{ credentials: [{ ...keys, denies: ["ListObjectsV2"] }] },
			6,
			/may not do this/,
		],
		[
			"a bucket that isn't there",
			(text) => text.replace(`bucket: ${bucket}`, "bucket: another"),
			{},
			3,
			/there is no such bucket/,
		],
		[
			"a name that isn't there",
			(text) => text.replace(/http:\/\/127[^"]+/, "http://s3.nowhere.invalid:9000"),
			{},
			4,
			/no such host name|name server gives no answer/,
		],
		[
			"nobody who listens",
			(text) => text.replace(/http:\/\/127[^"]+/, "http://127.0.0.1:9"),
			{},
			4,
			/the connection is refused/,
		],
	]
	test.each(wrong)("%s is told from the others", async (_, change, options, exitCode, says) => {
		const { endpoint } = await bucketThat(options)
		world.configure((text) => change(text.replace(world.s3.endpoint, endpoint)))
		const ended = await world.run(["doctor", "--json"])
		const reached = step(ended, "cache/reached")
		expect(reached, ended.stdout).toMatchObject({ outcome: "failed", because: expect.stringMatching(says) })
		expect(reached?.hint).toBeTruthy()
		// What else is wrong follows from it and has the same code, or is that it has no lock.
		expect([exitCode, 3]).toContain(ended.exitCode)
		expect(ended.outcomes["share/mounted"]).toBe("satisfied")
	})

	test("missing credentials are named, and the share is looked at all the same", async () => {
		renameSync(world.path("secrets.env"), world.path("secrets.env.away"))
		const ended = await world.run(["doctor", "--json"])
		renameSync(world.path("secrets.env.away"), world.path("secrets.env"))
		expect(ended.exitCode, ended.stdout).toBe(2)
		expect(step(ended, "cache/reached")?.because).toMatch(/R2_ACCESS_KEY_ID is missing/)
		expect(ended.outcomes["share/writable"]).toBe("satisfied")
	})

	test("uploads that were begun and not finished are listed", async () => {
		const { S3Client, CreateMultipartUploadCommand } = await import("@aws-sdk/client-s3")
		const { endpoint } = await bucketThat({ deletes: "locked" })
		const client = new S3Client({ endpoint, region: "auto", forcePathStyle: true, credentials: keys })
		await client.send(new CreateMultipartUploadCommand({ Bucket: bucket, Key: "sandbox/home/x.tar.zst" }))
		client.destroy()
		const ended = await world.run(["doctor", "--json"])
		expect(notes(ended), ended.stdout).toMatch(/sandbox\/home\/x\.tar\.zst was begun .* ago and not finished/)
	})
})

describe("what is wrong with a share", () => {
	const onShare = (...parts: string[]) => join(world.share, "cache/backups/sandbox", ...parts)

	test("one that isn't there fails alone, and nothing is claimed of it", async () => {
		renameSync(world.share, `${world.share}-gone`)
		const ended = await world.run(["doctor", "--json"])
		renameSync(`${world.share}-gone`, world.share)
		expect(step(ended, "share/mounted"), ended.stdout).toMatchObject({ outcome: "failed" })
		expect(step(ended, "share/room")?.outcome).toBe("blocked")
		expect(ended.outcomes["cache/reached"]).toBe("satisfied")
	})

	test("one of another environment is refused", async () => {
		await bucketThat({ deletes: "locked" })
		writeFileSync(join(world.share, "ENVIRONMENT"), "production\n")
		const ended = await world.run(["doctor", "--json"])
		rmSync(join(world.share, "ENVIRONMENT"))
		expect(ended.exitCode, ended.stdout).toBe(8)
		expect(step(ended, "share/environment")?.because).toMatch(/is for production, not for sandbox/)
		expect(ended.outcomes["share/mounted"]).toBe("satisfied")
	})

	test("older scripts' backups and unfinished snapshots are said, and fail nothing", async () => {
		await bucketThat({ deletes: "locked" })
		mkdirSync(onShare("home"), { recursive: true })
		const files = [
			join(world.share, "cache/backups/ufw-2026-11-20.tar.gz"),
			onShare("home/20261121T050000Z-0123456789ab.tar.zst"),
		]
		for (const file of files) writeFileSync(file, "x")
		const ended = await world.run(["doctor", "--json"])
		for (const file of files) rmSync(file)
		expect(ended.exitCode, ended.stdout).toBe(0)
		expect(step(ended, "share/older")?.because).toBe("1, the newest of 2026-11-20")
		expect(notes(ended)).toMatch(/20261121T050000Z-0123456789ab\.tar\.zst has no sidecar/)
	})

	// Mounting takes root, as instances do.
	describeWith("instances", "mounted for real", () => {
		const small = (...options: string[]) =>
			execFileSync("mount", ["-t", "tmpfs", "-o", ["size=300k", ...options].join(), "tmpfs", world.share])
		afterEach(() => execFileSync("umount", [world.share]))

		test("one that is read-only fails", async () => {
			small("ro")
			const ended = await world.run(["doctor", "--json"])
			expect(step(ended, "share/writable"), ended.stdout).toMatchObject({
				outcome: "failed",
				because: expect.stringMatching(/read-only/),
			})
		})

		test("one that is nearly full fails", async () => {
			small()
			writeFileSync(join(world.share, "x"), Buffer.alloc(290 * 1024))
			const ended = await world.run(["doctor", "--json"])
			expect(step(ended, "share/room"), ended.stdout).toMatchObject({
				outcome: "failed",
				hint: expect.stringMatching(/retention/),
			})
		})

		test("one that has no inodes left fails", async () => {
			small("nr_inodes=8")
			for (let file = 0; file < 7; file++) writeFileSync(join(world.share, `${file}`), "")
			const ended = await world.run(["doctor", "--json"])
			expect(step(ended, "share/room"), ended.stdout).toMatchObject({
				outcome: "failed",
				because: expect.stringMatching(/0 inodes free, 100 % used/),
			})
		})
	})
})
