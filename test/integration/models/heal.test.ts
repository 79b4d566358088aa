// Missing and damaged models come back, and nothing that is right, or that nobody knows better, is lost on the way.
import { execFileSync } from "node:child_process"
import {
	existsSync,
	mkdirSync,
	readFileSync,
	rmSync,
	statSync,
	symlinkSync,
	truncateSync,
	writeFileSync,
} from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { startHuggingFace } from "../../support/hugging-face.ts"
import { makeModel, writeSparseModel } from "../../support/model-maker.ts"
import { createModelWorld, entryOf, flipped, type ModelWorld, sha256 } from "../../support/model-world.ts"
import { describeWith } from "../../support/parts.ts"

const names = ["a", "b", "c"].map((name) => `loras/${name}.safetensors`)
const [a, b, c] = names as [string, string, string]
const contents = new Map(names.map((name, index) => [name, makeModel(40_000, index + 1)]))
const contentOf = (name: string) => contents.get(name) ?? Buffer.alloc(0)
const entries = names.map((name) => entryOf(name, contentOf(name)))
const kept = /\.bad-20261121T060000Z$/

let world: ModelWorld
beforeEach(async () => {
	world = await createModelWorld()
	world.declare(entries)
	for (const name of names) {
		world.write(name, contentOf(name))
		await world.store(name, contentOf(name))
	}
})
afterEach(() => world[Symbol.asyncDispose]())

const allRight = () => {
	for (const name of names) expect([name, world.digest(name)]).toEqual([name, sha256(contentOf(name))])
}
const partials = () => world.names().filter((name) => name.includes("partial"))

describe("restore --only models", () => {
	test("brings what is missing, and a second run fetches and changes nothing", async () => {
		rmSync(join(world.share, "models"), { recursive: true })
		const first = await world.restore()
		expect(first.exitCode, first.notes.join("\n")).toBe(0)
		allRight()
		expect(first.rows.map(({ artifact, source, ok }) => [artifact, source, ok])).toEqual(
			names.map((name) => [`models/${name}`, "r2", true]),
		)
		expect(first.because(a)).toBe("its sha256 is the manifest's; from r2")
		expect(statSync(world.file(a)).mode & 0o777).toBe(0o644)

		const before = world.sentBytes()
		const inodes = names.map((name) => statSync(world.file(name)).ino)
		const second = await world.restore()
		expect([second.exitCode, names.map(second.outcome)]).toEqual([0, names.map(() => "satisfied")])
		expect(second.rows).toEqual([
			expect.objectContaining({ artifact: "models", verified: "3 models right already", ok: true }),
		])
		expect(world.sentBytes()).toBe(before)
		expect(names.map((name) => statSync(world.file(name)).ino)).toEqual(inodes)
		expect(world.names()).toEqual(names)
	})

	const damages: readonly [string, (file: string) => void][] = [
		["truncated", (file) => truncateSync(file, 20_000)],
		[
			"a pointer",
			(file) => execFileSync("sh", ["-c", `echo "version https://git-lfs.github.com/spec/v1" >${file}`]),
		],
		["a page", (file) => execFileSync("sh", ["-c", `echo '<!DOCTYPE html><html>401</html>' >${file}`])],
		["empty", (file) => truncateSync(file, 0)],
		["larger", (file) => truncateSync(file, 50_000)],
	]
	test.each(damages)("heals a model that is %s, and keeps what stood there", async (_, damage) => {
		damage(world.file(b))
		const damaged = readFileSync(world.file(b))
		const { exitCode, outcome, notes } = await world.restore()
		expect([exitCode, names.map(outcome)]).toEqual([0, ["satisfied", "applied", "satisfied"]])
		allRight()
		const [aside = "", ...others] = world.names().filter((name) => kept.test(name))
		expect(others).toEqual([])
		expect(readFileSync(world.file(aside)).equals(damaged)).toBe(true)
		expect(notes).toContainEqual(expect.stringContaining(`what stood there is kept as ${world.file(aside)}`))
		expect(partials()).toEqual([])
	})

	test("heals a model whose end was never written", async () => {
		const sparse = "vae/sparse.safetensors"
		writeSparseModel(world.file(sparse), 3_000_000)
		const whole = readFileSync(world.file(sparse))
		await world.store(sparse, whole)
		world.declare([...entries, entryOf(sparse, whole)])
		writeSparseModel(world.file(sparse), 3_000_000, 0)
		expect((await world.restore()).outcome(sparse)).toBe("applied")
		expect(world.digest(sparse)).toBe(sha256(whole))
	})

	test("finds a flipped bit only with --deep, and heals it", async () => {
		world.write(b, flipped(contentOf(b)))
		expect((await world.restore()).outcome(b)).toBe("satisfied")
		expect((await world.restore({ deep: true })).outcome(b)).toBe("applied")
		allRight()
	})

	test("says in a dry run what would come from where, and changes nothing", async () => {
		rmSync(world.file(a))
		truncateSync(world.file(b), 20_000)
		const { exitCode, because, outcome } = await world.restore({ dryRun: true })
		expect([exitCode, names.map(outcome)]).toEqual([0, ["planned", "planned", "satisfied"]])
		expect(because(a)).toMatch(/^missing: it is not there; r2 has it: \d/)
		expect(because(b)).toMatch(/^truncated: .*; r2 has its .*, of which the damaged blocks are fetched$/)
		expect(world.names()).toEqual([b, c])
		expect(world.sentBytes()).toBe(0)
	})

	test("leaves an optional model away, and names what the vault has besides", async () => {
		rmSync(world.file(c))
		world.declare([...entries.slice(0, 2), { path: c, optional: true }])
		await world.store("vae/unlisted.safetensors", contentOf(a))
		const { exitCode, outcome, notes } = await world.restore()
		expect([exitCode, outcome(c)]).toEqual([0, "satisfied"])
		expect(notes).toEqual([expect.stringContaining("not brought back: vae/unlisted.safetensors")])
		expect(world.names()).toEqual([a, b])
	})

	test("puts models on the share although --from names R2 alone", async () => {
		rmSync(world.file(a))
		expect((await world.restore({ from: ["r2"] })).exitCode).toBe(0)
		allRight()
	})
})

describe("nothing good is lost", () => {
	test("when the vault's copy is damaged it is named, nothing takes the model's place, and the others come", async () => {
		rmSync(world.file(a))
		truncateSync(world.file(b), 20_000)
		for (const name of [a, b]) await world.corrupt(name)
		rmSync(world.file(c))
		const { exitCode, because, outcome, notes } = await world.restore()
		expect([exitCode, names.map(outcome)]).toEqual([3, ["failed", "failed", "applied"]])
		expect(because(a)).toMatch(/^no source has it right: .*loras\/a\.safetensors in r2/)
		expect(notes).toContainEqual(expect.stringContaining("r2 is passed over"))
		expect(world.names()).toEqual([b, c])
		expect(statSync(world.file(b)).size).toBe(20_000)
	})

	test("when the vault's copy can't be the right one not a byte of it is fetched", async () => {
		rmSync(world.file(a))
		rmSync(world.file(b))
		await world.store(a, makeModel(39_000))
		await world.store(b, contentOf(b), sha256(contentOf(c)))
		const { because, exitCode } = await world.restore()
		expect(exitCode).toBe(3)
		expect(because(a)).toContain("it has 39")
		expect(because(b)).toContain(`r2 says its sha256 is ${sha256(contentOf(c))}`)
		expect(world.sentBytes()).toBe(0)
	})

	test("a whole model stays when a figure that nobody verified says otherwise, and that is said", async () => {
		const figures = { from: "a listing", verified: false }
		world.declare([
			{ path: a, sizeBytes: 99_999, figures },
			{ path: b, sizeBytes: contentOf(b).length, sha256: sha256(contentOf(a)), figures },
		])
		const { exitCode, outcome, notes } = await world.restore({ deep: true })
		expect([exitCode, outcome(a), outcome(b)]).toEqual([3, "satisfied", "satisfied"])
		for (const note of notes.slice(-2))
			expect(note).toMatch(/never verified: a listing\); by itself it is whole/)
		allRight()
		expect(world.sentBytes()).toBe(0)
	})

	test("a missing model comes by the vault's own digest when nobody verified the manifest's", async () => {
		const figures = { from: "a listing", verified: false }
		world.declare([{ path: a, sizeBytes: contentOf(a).length, sha256: sha256(contentOf(b)), figures }])
		rmSync(world.file(a))
		const { exitCode, because, notes } = await world.restore()
		expect(exitCode).toBe(3)
		expect(because(a)).toBe("its sha256 is as claimed by r2; from r2")
		expect(notes).toContainEqual(expect.stringContaining(`and a listing says ${sha256(contentOf(b))}`))
		allRight()
	})

	test("without any digest a whole one is taken as not proven, and a damaged one is not taken", async () => {
		world.declare([{ path: a }, { path: b }])
		for (const name of [a, b]) rmSync(world.file(name))
		await world.store(a, contentOf(a), null)
		await world.store(b, contentOf(b).subarray(0, 30_000), null)
		const { exitCode, because, rows } = await world.restore()
		expect(exitCode).toBe(3)
		expect(because(a)).toBe("not proven: no digest is known; from r2")
		expect(rows[0]?.verified).toBe("not proven: no digest is known")
		expect(because(b)).toContain("what came is no whole model: truncated")
		expect(world.names()).toEqual([a, c])
	})

	test("a damaged model that was stored long ago with its own digest is not taken either", async () => {
		world.declare([{ path: b }])
		rmSync(world.file(b))
		await world.store(b, contentOf(b).subarray(0, 30_000))
		expect((await world.restore()).because(b)).toContain("what came is no whole model: truncated")
		expect(existsSync(world.file(b))).toBe(false)
	})

	test("a link to another model is healed where it leads, and none that leads elsewhere is written to", async () => {
		rmSync(world.file(b))
		symlinkSync("a.safetensors", world.file(b))
		truncateSync(world.file(a), 100)
		await world.store(b, contentOf(a))
		world.declare([entryOf(b, contentOf(a))])
		expect((await world.restore()).exitCode).toBe(0)
		expect(world.digest(a)).toBe(sha256(contentOf(a)))

		const outside = join(world.directory, "outside.safetensors")
		writeFileSync(outside, Buffer.alloc(100))
		rmSync(world.file(b))
		symlinkSync(outside, world.file(b))
		const { exitCode, because } = await world.restore()
		expect([exitCode, because(b)]).toEqual([8, expect.stringContaining("outside of")])
		expect(statSync(outside).size).toBe(100)
	})

	test("what a disk keeps otherwise than it was written is no success", async () => {
		rmSync(world.file(a))
		let isApplied = false
		const { exitCode, because, rows } = await world.restore({
			onEvent: (event) => {
				if (event.event === "applying") isApplied = true
				if (event.event === "checking" && isApplied && existsSync(world.file(a)))
					world.write(a, flipped(contentOf(a)))
			},
		})
		expect([exitCode, because(a)]).toEqual([3, expect.stringContaining("not what was just put there")])
		expect(rows).toContainEqual(expect.objectContaining({ artifact: `models/${a}`, ok: false }))
	})

	test("nothing is written where the share is not there", async () => {
		rmSync(world.share, { recursive: true })
		const { exitCode, outcome } = await world.restore()
		expect([exitCode, outcome("models"), names.map(outcome)]).toEqual([
			4,
			"failed",
			names.map(() => "blocked"),
		])
		expect(existsSync(world.share)).toBe(false)
		expect(world.sentBytes()).toBe(0)
	})
})

describe("what stands in the way", () => {
	test("a vault that can't be reached ends with 4, names the next command, and the right models stay right", async () => {
		rmSync(world.file(a))
		await world.s3.close()
		const { exitCode, outcome } = await world.restore()
		expect([exitCode, names.map(outcome)]).toEqual([4, ["failed", "satisfied", "satisfied"]])
	})

	test("another host at the same models ends with 5, and says who it is", async () => {
		rmSync(world.file(a))
		const lock = join(world.models, ".comfyume.lock")
		const holder = execFileSync(
			"sh",
			["-c", `printf 'an operator of app-2' >"${lock}"; flock "${lock}" sleep 60 >/dev/null 2>&1 & echo $!`],
			{ encoding: "utf8" },
		)
		try {
			execFileSync("sh", ["-c", `while flock --nonblock "${lock}" true; do :; done`], { timeout: 5000 })
			const { exitCode, because } = await world.restore()
			expect([exitCode, because(a)]).toEqual([5, expect.stringContaining("an operator of app-2")])
			expect(world.names()).toEqual([b, c])
		} finally {
			execFileSync("sh", ["-c", `kill $(cat /proc/${holder.trim()}/task/*/children) ${holder.trim()}`])
		}
		expect((await world.restore()).exitCode).toBe(0)
	})

	test("a directory to fetch to that isn't there ends with 2 before anything else", async () => {
		rmSync(world.file(a))
		const { exitCode, hint } = await world.restore({ tempDir: "/nowhere" })
		expect([exitCode, hint("models")]).toEqual([2, "mkdir /nowhere"])
	})

	test("with a directory to fetch to, nothing stands beside the model before it is proven, and nothing stays", async () => {
		const temporary = join(world.directory, "server/tmp")
		mkdirSync(temporary)
		rmSync(world.file(a))
		await world.corrupt(b)
		rmSync(world.file(b))
		const { outcome } = await world.restore({ tempDir: "/tmp" })
		expect([outcome(a), outcome(b)]).toEqual(["applied", "failed"])
		expect(world.digest(a)).toBe(sha256(contentOf(a)))
		expect(world.names()).toEqual([a, c])
		expect(execFileSync("ls", ["-A", temporary], { encoding: "utf8" })).toBe("")
	})
})

describeWith("instances", "a share that is full", () => {
	test("ends with 7, leaves nothing behind, and lets the smaller models through", async () => {
		const large = makeModel(900_000)
		const big = "vae/large.safetensors"
		await world.store(big, large)
		world.declare([...entries, entryOf(big, large)])
		rmSync(world.models, { recursive: true })
		mkdirSync(world.models)
		execFileSync("mount", ["-t", "tmpfs", "-o", "size=600k", "tmpfs", world.models])
		try {
			const { exitCode, outcome, because, hint } = await world.restore()
			expect([exitCode, names.map(outcome), outcome(big)]).toEqual([7, names.map(() => "applied"), "failed"])
			expect(because(big)).toMatch(/has \d+ bytes free, \d+ are needed$/)
			expect(hint(big)).toMatch(/^df -h/)
			expect(partials()).toEqual([])
			expect(world.requests("GetObject").some(({ key }) => key === big)).toBe(false)
			execFileSync("mount", ["-o", "remount,size=8m", world.models])
			expect((await world.restore()).outcome(big)).toBe("applied")
		} finally {
			execFileSync("umount", [world.models])
		}
	})
})

describe("the publisher, by explicit choice", () => {
	const path = "owner/model/resolve/main/a.safetensors"
	const token = "made-up-token-with-licence"

	test("gives what the vault has lost, with a token that goes nowhere else", async () => {
		await using hub = await startHuggingFace({ [token]: true })
		const { url } = hub.publish({ path, content: contentOf(a), gated: true })
		world.declare([entryOf(a, contentOf(a), { url, gated: true })])
		rmSync(world.file(a))
		await world.s3.objects.lose("model-vault", a)
		world.publishedBy(hub.origin, token)

		const without = await world.restore()
		expect([without.exitCode, without.outcome(a)]).toEqual([3, "failed"])
		expect(hub.publisherLog).toEqual([])
		expect((await world.restore({ dryRun: true })).hint(a)).toMatch(/^comfyume restore .* --from-origin$/)

		const { exitCode, because, events } = await world.restore({ fromOrigin: true })
		expect(exitCode).toBe(0)
		expect(because(a)).toBe("its sha256 is the manifest's; from origin")
		expect(world.digest(a)).toBe(sha256(contentOf(a)))
		expect(JSON.stringify([hub.storageLog, events, world.s3.log])).not.toContain(token)
	})

	test("is passed over when it has another file by now, and nothing of that is kept", async () => {
		await using hub = await startHuggingFace({})
		const { url } = hub.publish({ path, content: contentOf(b) })
		world.declare([entryOf(a, contentOf(a), { url })])
		rmSync(world.file(a))
		await world.s3.objects.lose("model-vault", a)
		world.publishedBy(hub.origin)
		const { exitCode, because } = await world.restore({ fromOrigin: true })
		expect([exitCode, because(a)]).toEqual([
			3,
			expect.stringContaining(`its sha256 is ${sha256(contentOf(b))}`),
		])
		expect(world.names()).toEqual([b, c])
	})

	test("is believed in what it claims where the manifest knows nothing, and held to it", async () => {
		await using hub = await startHuggingFace({})
		const honest = hub.publish({ path, content: contentOf(a) })
		const other = path.replace("a.", "b.")
		const lying = hub.publish({ path: other, content: contentOf(b), says: { digest: sha256(contentOf(c)) } })
		world.declare([
			{ path: a, url: honest.url },
			{ path: b, url: lying.url },
		])
		for (const name of [a, b]) {
			rmSync(world.file(name))
			await world.s3.objects.lose("model-vault", name)
		}
		world.publishedBy(hub.origin)
		const { because, outcome } = await world.restore({ fromOrigin: true })
		expect(because(a)).toMatch(/^its sha256 is as claimed by 127\.0\.0\.1:\d+; from origin$/)
		expect(outcome(b)).toBe("failed")
		expect(world.names()).toEqual([a, c])
	})

	test("that asks for a token ends with 6 where that is all that is wrong", async () => {
		await using hub = await startHuggingFace({ [token]: true })
		const { url } = hub.publish({ path, content: contentOf(a), gated: true })
		world.declare([entryOf(a, contentOf(a), { url, gated: true })])
		rmSync(world.file(a))
		world.publishedBy(hub.origin)
		await world.s3.objects.lose("model-vault", a)
		const { exitCode, hint, because } = await world.heal({ fromOrigin: true })
		expect([exitCode, because(a)]).toEqual([6, expect.stringContaining("there is no HF_TOKEN")])
		expect(hint(a)).toContain("add HF_TOKEN=")
	})
})

describe("verify-models --heal", () => {
	test("puts right what is not, and finds all right afterwards", async () => {
		truncateSync(world.file(a), 100)
		world.write(b, flipped(contentOf(b)))
		const { exitCode, outcome } = await world.heal({ level: "digest" })
		expect([exitCode, names.map(outcome)]).toEqual([0, ["applied", "applied", "satisfied"]])
		allRight()
		const again = await world.heal({ level: "digest" })
		expect(names.map(again.outcome)).toEqual(names.map(() => "satisfied"))
	})

	test("heals another directory from the share first, which is nearer than the vault", async () => {
		const directory = join(world.directory, "elsewhere")
		mkdirSync(directory)
		const { exitCode, because } = await world.heal({ directory })
		expect([exitCode, because(a)]).toEqual([0, "its sha256 is the manifest's; from share"])
		expect(readFileSync(join(directory, a)).equals(contentOf(a))).toBe(true)
		expect(world.sentBytes()).toBe(0)
	})
})
