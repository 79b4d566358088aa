// `comfyume verify-models --env` as an operator types it: models on the share, in a bucket and inside of containers,
// held against the manifest and against each other.
import { chmodSync, mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest"
import type { Event } from "../../../src/lib/plan/events.ts"
import { createWorld, type Ended, inventory, secrets, type World } from "../../support/cli.ts"
import { makeModel } from "../../support/model-maker.ts"
import { type ModelPlaces, modelsBucket, openModelPlaces } from "../../support/model-places.ts"
import { node, workflow } from "../../support/workflow-maker.ts"

let world: World
let places: ModelPlaces
const mebibyte = 1024 * 1024
const models: Readonly<Record<string, Buffer>> = Object.fromEntries(
	["whole", "truncated", "flipped", "pointer", "page", "sparse"].map((name, index) => [
		`loras/${name}.safetensors`,
		makeModel(name === "sparse" ? 3 * mebibyte : 200_000, index + 1),
	]),
)
const bytesOf = (name: string) => models[`loras/${name}.safetensors`] ?? Buffer.alloc(0)

beforeAll(async () => {
	world = await createWorld()
	places = await openModelPlaces(world.share, {
		accessKeyId: secrets.R2_ACCESS_KEY_ID,
		secretAccessKey: secrets.R2_SECRET_ACCESS_KEY,
	})
})
afterAll(async () => {
	await places?.s3.close()
	await world?.[Symbol.asyncDispose]()
})
beforeEach(async () => {
	world.configure(withBucket)
	await places.clear()
	rmSync(world.path("server/var/lib/comfyume"), { recursive: true, force: true })
	rmSync(world.path("server/usr/local/bin/docker"), { force: true })
	for (const [path, bytes] of Object.entries(models)) await places.everywhere(path, bytes)
	writeFileSync(world.path("models.yaml"), places.manifestOf(models))
})

const withBucket = (text: string) => text.replace("buckets:\n", `buckets:\n        ${places.bucketLine()}\n`)

const verify = (...words: string[]) =>
	world.run(["verify-models", "--manifest", world.path("models.yaml"), ...words])

type ModelEvent = Extract<Event, { event: "model" }>
const modelEvents = ({ events }: Ended) =>
	events.filter((event): event is ModelEvent => event.event === "model")

async function verdicts(...words: string[]) {
	const ended = await verify("--json", ...words)
	expect(ended.stderr).toBe("")
	const of = (place: string) =>
		Object.fromEntries(
			modelEvents(ended)
				.filter((event) => event.place === place)
				.map(({ path, status }) => [path.replace(/^loras\/(.*)\.safetensors$/, "$1"), status]),
		)
	const because = (place: string, path: string) =>
		modelEvents(ended).find((event) => event.place === place && event.path === path)?.because
	return { exitCode: ended.exitCode, share: of("share"), r2: of("r2"), because, ended, of }
}

const allOk = Object.fromEntries(
	["whole", "truncated", "flipped", "pointer", "page", "sparse"].map((name) => [name, "ok"]),
)

/** The five kinds of damage, as bytes. */
const damaged = () => {
	const flipped = Buffer.from(bytesOf("flipped"))
	flipped[flipped.length - 9] = Number(flipped.at(-9)) ^ 1
	const sparse = Buffer.from(bytesOf("sparse"))
	sparse.fill(0, 4096)
	return {
		truncated: bytesOf("truncated").subarray(0, 100_000),
		flipped,
		pointer: Buffer.from("version https://git-lfs.github.com/spec/v1\nsize 200000\n"),
		page: Buffer.from("<!DOCTYPE html><html><title>401</title></html>"),
		sparse,
	}
}
const named = {
	whole: "ok",
	truncated: "truncated",
	flipped: "digest-mismatch",
	pointer: "lfs-pointer",
	page: "html",
	sparse: "zero-tail",
}

describe("models that are right in both places", () => {
	test("are right, by one listing and at most four ranged reads of each object", async () => {
		const from = places.s3.log.length
		const { exitCode, share, r2 } = await verdicts()
		expect({ exitCode, share, r2 }).toEqual({ exitCode: 0, share: allOk, r2: allOk })
		const asked = places.s3.log.slice(from)
		const lists = asked.filter(({ operation }) => operation === "ListObjectsV2")
		// The probe, and the listing itself.
		expect(lists.length).toBe(2)
		const reads = asked.filter(({ operation }) => operation === "GetObject")
		for (const path of Object.keys(models)) {
			const ofThis = reads.filter(({ key }) => key === path)
			expect(ofThis.length).toBeGreaterThan(0)
			expect(ofThis.length).toBeLessThanOrEqual(4)
		}
		expect(asked.length).toBe(lists.length + reads.length)
		expect(reads.reduce((sum, { bytesOut }) => sum + bytesOut, 0)).toBeLessThan(6 * 70_000)
	})

	test.each(["exists", "size"])("take nothing but the listing at the level %s", async (level) => {
		const from = places.s3.log.length
		expect((await verdicts("--level", level)).exitCode).toBe(0)
		expect(places.s3.log.slice(from).map(({ operation }) => operation)).toEqual([
			"ListObjectsV2",
			"ListObjectsV2",
		])
	})

	test("are right by digest: the share's bytes are read, the bucket's digests are named as claims", async () => {
		const { exitCode, because, ended } = await verdicts("--level", "digest")
		expect(exitCode).toBe(0)
		expect(because("share", "loras/whole.safetensors")).toBe("its sha256 is the manifest's")
		expect(because("r2", "loras/whole.safetensors")).toContain("a claim, its bytes were not read")
		expect(modelEvents(ended).map(({ place, tier }) => `${place} ${tier}`)).toContain("r2 structure")
		expect(ended.stdout).toContain("only reading proves them")
	})

	test("are looked at without a change: only digests are remembered, and no lock is taken", async () => {
		const seen = () => [inventory(world.server, ["digests"]), inventory(world.share)]
		mkdirSync(world.path("server/var/lib/comfyume"), { recursive: true })
		const before = seen()
		const from = places.s3.log.length
		expect((await verify("--deep", "--from", "both")).exitCode).toBe(0)
		expect(seen()).toEqual(before)
		const asked = new Set(places.s3.log.slice(from).map(({ method }) => method))
		expect([...asked].sort()).toEqual(["GET", "HEAD"])
	})

	test("--quiet is silent", async () => {
		expect(await verify("--quiet")).toMatchObject({ exitCode: 0, stdout: "", stderr: "" })
	})
})

describe("the five kinds of damage", () => {
	test("are each named on the share, and the bucket has the good ones", async () => {
		for (const [name, bytes] of Object.entries(damaged())) places.onShare(`loras/${name}.safetensors`, bytes)
		const { exitCode, share, r2 } = await verdicts("--level", "digest")
		expect({ exitCode, share, r2 }).toEqual({ exitCode: 3, share: named, r2: allOk })
	})

	test("are each named in the bucket, the flipped byte by streaming all of them", async () => {
		for (const [name, bytes] of Object.entries(damaged()))
			await places.inBucket(`loras/${name}.safetensors`, bytes)
		// As a sick disk would: the digest that was noted is still the right one.
		for (const name of ["flipped", "sparse"] as const) {
			await places.inBucket(`loras/${name}.safetensors`, bytesOf(name))
			await places.s3.objects.corrupt(modelsBucket, `loras/${name}.safetensors`, () => damaged()[name])
		}
		const byStructure = await verdicts("--from", "r2")
		expect(byStructure.r2).toEqual({ ...named, flipped: "ok" })
		expect(byStructure.exitCode).toBe(3)
		const byClaim = await verdicts("--level", "digest", "--from", "r2")
		expect(byClaim.r2).toEqual({ ...named, flipped: "ok" })
		const deep = await verdicts("--deep", "--from", "r2")
		expect({ exitCode: deep.exitCode, r2: deep.r2 }).toEqual({ exitCode: 3, r2: named })
	})

	test("a digest that was noted wrongly is found without reading", async () => {
		await places.inBucket("loras/whole.safetensors", bytesOf("whole"), "0".repeat(64))
		expect((await verdicts("--level", "digest", "--from", "r2")).r2).toEqual({
			...allOk,
			whole: "digest-mismatch",
		})
	})

	test("stand first in the table for people, with a column for each place", async () => {
		for (const [name, bytes] of Object.entries(damaged())) places.onShare(`loras/${name}.safetensors`, bytes)
		rmSync(join(places.directory, "loras/page.safetensors"))
		const { exitCode, stdout, stderr } = await verify()
		expect(exitCode).toBe(3)
		const lines = stdout.split("\n")
		expect(lines[0]).toMatch(/^model +share +r2 +size +because$/)
		const order = lines.filter((line) => line.startsWith("loras/")).map((line) => line.split(/\s+/)[0])
		expect(order.slice(-2).sort()).toEqual(["loras/flipped.safetensors", "loras/whole.safetensors"])
		expect(stdout).toMatch(/loras\/page\.safetensors +missing +ok \(structure\)/)
		expect(stderr).toMatch(/failed: models on the share: .*4 not right/)
	})
})

describe("places held against each other", () => {
	test("a missing model says where it is; one that nobody has says so", async () => {
		rmSync(join(places.directory, "loras/whole.safetensors"))
		await places.s3.objects.lose(modelsBucket, "loras/page.safetensors")
		rmSync(join(places.directory, "loras/flipped.safetensors"))
		await places.s3.objects.lose(modelsBucket, "loras/flipped.safetensors")
		const { exitCode, share, r2, because } = await verdicts()
		expect(exitCode).toBe(3)
		expect(share).toEqual({ ...allOk, whole: "missing", flipped: "missing" })
		expect(r2).toEqual({ ...allOk, page: "missing", flipped: "missing" })
		const size = bytesOf("whole").length
		expect(because("share", "loras/whole.safetensors")).toBe(`it is not there; r2 has it (${size} bytes)`)
		expect(because("r2", "loras/page.safetensors")).toMatch(/share has it/)
		expect(because("share", "loras/flipped.safetensors")).toMatch(/no other place has it/)
	})

	test("files in no manifest are listed with where they are not, and make nothing fail", async () => {
		await places.inBucket("vae/old.safetensors", makeModel(5000))
		places.onShare("vae/new.safetensors", makeModel(6000))
		places.onShare("vae/notes.txt", Buffer.from("hello"))
		const { exitCode, share, r2, because } = await verdicts()
		expect(exitCode).toBe(0)
		expect(r2).toEqual({ ...allOk, "vae/old.safetensors": "extra" })
		expect(share).toEqual({ ...allOk, "vae/new.safetensors": "extra", "vae/notes.txt": "extra" })
		expect(because("r2", "vae/old.safetensors")).toMatch(/share doesn't have it/)
		expect(because("share", "vae/new.safetensors")).toMatch(/r2 doesn't have it/)
	})

	test("sizes that differ are found although the manifest knows none", async () => {
		writeFileSync(world.path("models.yaml"), places.manifestOf(models, "paths"))
		await places.inBucket("loras/whole.safetensors", makeModel(100_000))
		await places.everywhere("vae/extra.safetensors", makeModel(5000))
		places.onShare("vae/extra.safetensors", makeModel(6000))
		const { exitCode, share, r2 } = await verdicts()
		expect(exitCode).toBe(3)
		expect(share).toEqual({ ...allOk, whole: "differs", "vae/extra.safetensors": "differs" })
		expect(r2).toEqual({ ...allOk, whole: "differs", "vae/extra.safetensors": "differs" })
	})

	test("bytes that differ are found although the manifest knows no digest", async () => {
		writeFileSync(world.path("models.yaml"), places.manifestOf(models, "paths"))
		await places.inBucket("loras/whole.safetensors", makeModel(200_000, 99))
		const { exitCode, r2, because } = await verdicts("--deep")
		expect(exitCode).toBe(3)
		expect(r2).toEqual({ ...allOk, whole: "differs" })
		expect(because("r2", "loras/whole.safetensors")).toMatch(/of the other place's bytes/)
	})

	test("names that differ only in case are told", async () => {
		renameSync(
			join(places.directory, "loras/whole.safetensors"),
			join(places.directory, "loras/Whole.safetensors"),
		)
		const { exitCode, because } = await verdicts()
		expect(exitCode).toBe(3)
		expect(because("share", "loras/whole.safetensors")).toMatch(
			/loras\/Whole\.safetensors differs from it only/,
		)
		expect(because("share", "loras/Whole.safetensors")).toMatch(
			/loras\/whole\.safetensors differs from it only/,
		)
	})

	test("a link on the share is the model that it leads to", async () => {
		renameSync(join(places.directory, "loras/whole.safetensors"), join(places.directory, "real.safetensors"))
		symlinkSync("../real.safetensors", join(places.directory, "loras/whole.safetensors"))
		const { exitCode, share } = await verdicts("--level", "digest")
		expect({ exitCode, whole: share["whole"] }).toEqual({ exitCode: 0, whole: "ok" })
	})
})

describe("a place that can't be used", () => {
	test("a wrong endpoint is said, with 4; the share is judged all the same", async () => {
		const closed = places.bucketLine().replace(/:\d+"/, ':1"')
		world.configure((text) => text.replace("buckets:\n", `buckets:\n        ${closed}\n`))
		const { exitCode, share, r2, ended } = await verdicts()
		expect({ exitCode, share, r2 }).toEqual({ exitCode: 4, share: allOk, r2: {} })
		expect(ended.outcomes).toEqual({ "models-share": "satisfied", "models-r2": "failed" })
		// With differences besides there is no one reason.
		rmSync(join(places.directory, "loras/whole.safetensors"))
		expect((await verdicts()).exitCode).toBe(3)
	})

	test("wrong credentials are said, with 6", async () => {
		const other = await openModelPlaces(world.path("elsewhere"), {
			accessKeyId: "another-made-up-key",
			secretAccessKey: "another-made-up-secret",
		})
		try {
			world.configure((text) => text.replace("buckets:\n", `buckets:\n        ${other.bucketLine()}\n`))
			expect(await verdicts("--from", "r2")).toMatchObject({ exitCode: 6 })
		} finally {
			await other.s3.close()
		}
	})

	test("a bucket that goes away in the middle ends in an error, not in missing models", async () => {
		const fault = places.s3.fault({
			match: { operation: "GetObject" },
			do: { status: 403, code: "AccessDenied" },
		})
		const { exitCode, r2 } = await verdicts("--from", "r2")
		fault.remove()
		expect({ exitCode, r2 }).toEqual({ exitCode: 6, r2: {} })
	})

	test("an object that is replaced while it is judged is not judged from two halves", async () => {
		const fault = places.s3.fault({
			match: { operation: "GetObject", key: /sparse/, after: 1, times: 1 },
			do: { first: () => places.inBucket("loras/sparse.safetensors", makeModel(3 * mebibyte, 77)) },
		})
		const { exitCode, r2, because } = await verdicts("--from", "r2")
		fault.remove()
		expect({ exitCode, r2 }).toEqual({ exitCode: 3, r2: { ...allOk, sparse: "unknown" } })
		expect(because("r2", "loras/sparse.safetensors")).toMatch(/replaced while it was read/)
	})

	test("a share that isn't there is unreachable, and one without models is no success", async () => {
		renameSync(world.share, `${world.share}-away`)
		try {
			const { exitCode, r2 } = await verdicts()
			expect({ exitCode, r2 }).toEqual({ exitCode: 4, r2: allOk })
		} finally {
			renameSync(`${world.share}-away`, world.share)
		}
		rmSync(places.directory, { recursive: true })
		expect(await verdicts("--from", "share")).toMatchObject({ exitCode: 3, share: {} })
		mkdirSync(places.directory)
		expect((await verify("--from", "share")).stderr).toMatch(/there is no model in [\s\S]*try: findmnt/)
	})

	test("one that the environment doesn't have is a mistake of the command line", async () => {
		world.configure()
		expect(await verify("--from", "r2")).toMatchObject({
			exitCode: 2,
			stderr: expect.stringContaining("sandbox has no models in r2"),
		})
		expect((await verdicts()).exitCode).toBe(0)
	})
})

describe("what a frontend sees", () => {
	/**
	 * A stand-in for docker: two frontends and another container, each a directory that is seen as `/models`.
	 * @param seen container -> directory
	 */
	const installDocker = (seen: Readonly<Record<string, string>>) => {
		const cases = Object.entries(seen).map(
			([name, directory]) =>
				`${name}) cd '${directory}' && shift 4 && find -L . "$@" | sed 's, \\./, /models/,' ;;`,
		)
		const program = `#!/bin/sh
# A stand-in for docker: lists containers, and runs find in the directory that plays /models.
case "$1" in
ps) printf '%s\\n' comfy-queue-manager ${Object.keys(seen).join(" ")} ;;
exec) case "$2" in
${cases.join("\n")}
*) echo "Error: No such container: $2" >&2; exit 1 ;;
esac ;;
*) exit 1 ;;
esac
`
		const file = world.path("server/usr/local/bin/docker")
		writeFileSync(file, program)
		chmodSync(file, 0o755)
	}

	test("is asked by itself, and right where the mount shows the share's models", async () => {
		// As on the platform: the directory above is mounted.
		installDocker({ "comfy-user001": world.path("share/models"), "comfy-user002": places.directory })
		const { exitCode, ended } = await verdicts()
		expect(exitCode).toBe(0)
		expect(ended.outcomes["models-frontends"]).toBe("satisfied")
	})

	test("models that a stale listing hides or still shows are named with the container", async () => {
		const old = world.path("old-view")
		mkdirSync(join(old, "loras"), { recursive: true })
		for (const [path, bytes] of Object.entries(models)) writeFileSync(join(old, path), bytes)
		writeFileSync(join(old, "loras/gone.safetensors"), makeModel(1000))
		rmSync(join(old, "loras/whole.safetensors"))
		writeFileSync(join(old, "loras/page.safetensors"), "cut")
		installDocker({ "comfy-user001": places.directory, "comfy-user002": old })
		const { exitCode, of, because, ended } = await verdicts()
		expect(exitCode).toBe(3)
		expect(of("frontends")).toEqual({ whole: "missing", page: "differs", gone: "extra" })
		const said = because("frontends", "loras/whole.safetensors")
		expect(said).toBe("the share has it, and it is not seen by comfy-user002: stale listing")
		expect(ended.stdout).toContain("docker restart comfy-user002")
	})

	test("is passed over where docker gives no answer, unless a frontend is named", async () => {
		installDocker({})
		const file = world.path("server/usr/local/bin/docker")
		writeFileSync(file, "#!/bin/sh\necho 'Cannot connect to the Docker daemon' >&2\nexit 1\n")
		const { exitCode, ended } = await verdicts()
		expect({ exitCode, asked: ended.outcomes["models-frontends"] }).toEqual({ exitCode: 0, asked: undefined })
		expect((await verdicts("--container", "comfy-user001")).exitCode).toBe(3)
	})

	test("a container that sees nothing was started before the share was mounted", async () => {
		mkdirSync(world.path("nothing"), { recursive: true })
		installDocker({ "comfy-user001": world.path("nothing") })
		const { exitCode, ended } = await verdicts("--container", "comfy-user001")
		expect(exitCode).toBe(3)
		expect(ended.stdout).toContain("started before the share was mounted")
		expect((await verdicts("--container", "comfy-user077")).exitCode).toBe(3)
	})
})

test("--models and what belongs to an environment are not mixed, nor levels that contradict", async () => {
	const bare = (...words: string[]) => world.run(["verify-models", ...words], { bare: true })
	for (const words of [
		["--models", ".", "--from", "r2"],
		["--models", ".", "--env", "sandbox"],
		["--models", ".", "--deep", "--level", "size"],
		["--models", ".", "--deep", "--scrub", "1/2"],
		["--models", ".", "--scrub", "3/2"],
	])
		expect(await bare(...words), words.join(" ")).toMatchObject({
			exitCode: 2,
			stderr: expect.stringContaining("next: "),
		})
})

describe("what workflows need of an environment", () => {
	const needing = (...names: string[]) =>
		JSON.stringify(workflow(names.map((name) => node("LoraLoaderModelOnly", [`${name}.safetensors`]))))
	const write = (name: string, text: string) => {
		mkdirSync(world.path("workflows"), { recursive: true })
		writeFileSync(world.path(`workflows/${name}`), text)
	}
	const workflowsOf = ({ events }: Ended) =>
		Object.fromEntries(
			events.flatMap((event) => (event.event === "workflow" ? [[event.path, event.status]] : [])),
		)
	beforeEach(() => {
		rmSync(world.path("workflows"), { recursive: true, force: true })
		write("whole.json", needing("whole"))
		write("both.json", needing("whole", "truncated"))
	})
	const words = () => ["--env", "sandbox", "--workflows", world.path("workflows")]

	test("is held against what is right on the share", async () => {
		const right = await verify("--json", ...words())
		expect(workflowsOf(right)).toEqual({ "whole.json": "ok", "both.json": "ok" })
		expect(right.exitCode).toBe(0)
		writeFileSync(join(places.directory, "loras/truncated.safetensors"), damaged().truncated)
		const ended = await verify("--json", ...words())
		expect(workflowsOf(ended)).toEqual({ "whole.json": "ok", "both.json": "incomplete" })
		expect(ended.exitCode).toBe(3)
		const plain = await verify(...words())
		expect(plain.stdout).toContain("incomplete both.json: lacks 1 of 2 models")
		expect(plain.stderr).toContain("1 of 2 workflows can't run: both.json")
	})

	test("a directory without any workflow is no success, one that isn't there a wrong call", async () => {
		rmSync(world.path("workflows/whole.json"))
		rmSync(world.path("workflows/both.json"))
		expect(await verify(...words())).toMatchObject({ exitCode: 3 })
		rmSync(world.path("workflows"), { recursive: true })
		expect(await verify(...words())).toMatchObject({ exitCode: 2 })
	})

	test("a key that hides a directory from ComfyUI is named with its line", async () => {
		writeFileSync(
			world.path("extra_model_paths.yaml"),
			"shared:\n  base_path: /models\n  upscale_models: loras/\n",
		)
		const file = world.path("extra_model_paths.yaml")
		const ended = await verify("--json", "--env", "sandbox", "--model-paths", file)
		expect(ended.exitCode).toBe(3)
		expect(
			ended.events.flatMap((event) =>
				event.event === "model-paths" ? [`${event.line} ${event.severity}`] : [],
			),
		).toEqual(["3 warning", "undefined error"])
	})
})
