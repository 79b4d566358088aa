// Retention: what it keeps over a year, against an oracle of its own, and everything that must make it keep its hands off.
import { createHash } from "node:crypto"
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test, vi } from "vitest"
import { Secret } from "../../../src/lib/secret.ts"
import { s3Store } from "../../../src/lib/storage/s3.ts"
import { startS3Server } from "../../support/s3-server/index.ts"
import { createSandbox, flipBit, type Ran, type Sandbox } from "../../support/sandbox.ts"

let sandbox: Sandbox
let server: string
beforeEach(async () => {
	// Thousands of files come and go, each removal synced: in memory, where there is such a place.
	if (existsSync("/dev/shm")) vi.stubEnv("TMPDIR", "/dev/shm")
	sandbox = await createSandbox()
	server = await sandbox.freshServer("fresh")
})
afterEach(() => {
	sandbox[Symbol.dispose]()
	vi.unstubAllEnvs()
})

const only = ["home"]
const said = ({ events }: Ran) => JSON.stringify(events)
const sha256 = (text: string) => createHash("sha256").update(text).digest("hex")

/** A snapshot of a few bytes; retention looks at names, sidecars and digests, never into archives. */
function snapshot(at: Date, shrunkFromBytes?: number) {
	const archive = `archive of ${at.toISOString()}`
	const digest = sha256(archive)
	const id = `${at.toISOString().replace(/\.\d+|[-:]/g, "")}-${digest.slice(0, 12)}`
	const sidecar = JSON.stringify({
		...{ version: 1, kind: "archive", comfyume: "0.0.0-test", environment: "sandbox", host: "app-1" },
		...{ artifact: "home", takenAt: at.toISOString(), digest, sizeBytes: archive.length, members: 1 },
		...{ unpackedBytes: 1, treeDigest: sha256(digest), ownership: false, changedWhileRead: [] },
		...(shrunkFromBytes === undefined ? {} : { shrunkFromBytes }),
	})
	return { id, at, archive, sidecar }
}
type Snapshot = ReturnType<typeof snapshot>
const put = (place: string, { id, archive, sidecar }: Snapshot) => {
	const directory = join(place, "sandbox/home")
	mkdirSync(directory, { recursive: true })
	writeFileSync(join(directory, `${id}.tar.zst`), archive)
	writeFileSync(join(directory, `${id}.tar.zst.json`), sidecar)
}
const rowOf = ({ events }: Ran) => events.flatMap((event) => (event.event === "end" ? event.summary : []))[0]
const onShare = () => readdirSync(join(sandbox.share, "sandbox/home")).sort()
const namesOf = (kept: Iterable<string>) =>
	[...kept].flatMap((id) => [`${id}.tar.zst`, `${id}.tar.zst.json`]).sort()

/** Ten days, two snapshots each, on both places; the clock stands shortly after the last. */
function tenDays(): Snapshot[] {
	const all = Array.from({ length: 20 }, (_, half) => snapshot(new Date(Date.UTC(2026, 10, 2, half * 12))))
	for (const one of all) for (const place of [sandbox.share, sandbox.second]) put(place, one)
	sandbox.at("2026-11-11T12:30:00Z")
	return all
}

/** Written from what the operators want, not from the code: the last of each day, week and month, by going through all. */
function oracle(history: readonly Snapshot[]): Set<string> {
	const lastOf = (span: (at: Date) => string, most: number) => {
		const last: Record<string, string> = {}
		for (const { at, id } of history) last[span(at)] = id
		return Object.entries(last)
			.sort()
			.slice(-most)
			.map(([, id]) => id)
	}
	const monday = (at: Date) => {
		const back = (at.getUTCDay() + 6) % 7
		return new Date(Date.UTC(at.getUTCFullYear(), at.getUTCMonth(), at.getUTCDate() - back)).toJSON()
	}
	return new Set([
		...lastOf((at) => at.toISOString().split("T")[0] ?? "", 5),
		...lastOf(monday, 3),
		...lastOf((at) => `${at.getUTCFullYear()}-${String(at.getUTCMonth()).padStart(2, "0")}`, 3),
	])
}

test("a year of hourly runs on a server in use by day: the share keeps what an independent oracle says, R2 everything", async () => {
	const keys = { accessKeyId: new Secret("year-key"), secretAccessKey: new Secret("year-secret") }
	await using s3 = await startS3Server({
		buckets: ["vault"],
		credentials: [{ accessKeyId: "year-key", secretAccessKey: "year-secret" }],
	})
	await using store = s3Store({ name: "r2", endpoint: s3.endpoint, bucket: "vault", ...keys })
	const write = (key: string, text: string) =>
		s3.objects.write(
			"vault",
			{ key, etag: `"${sha256(text)}"`, storedAt: new Date(0), metadata: {}, contentType: "text/plain" },
			Buffer.from(text),
		)
	const history: Snapshot[] = []
	let stored = 0
	let runs = 0
	for (let hour = 0; hour < 365 * 24; hour++) {
		// What has not changed is not stored: it is in use from 9 to 17.
		if (hour % 24 >= 9 && hour % 24 < 17) {
			history.push(snapshot(new Date(Date.UTC(2026, 0, 1, hour, 17))))
			const [taken] = history.slice(-1)
			if (taken !== undefined) put(sandbox.share, taken)
		}
		const [one] = history.slice(-1)
		if (one === undefined) continue
		if ([14, 18].includes(hour % 24)) {
			stored++
			await write(`sandbox/home/${one.id}.tar.zst`, one.archive)
			await write(`sandbox/home/${one.id}.tar.zst.json`, one.sidecar)
		}
		// Once in five days, right after R2 has got the newest.
		if (hour % 120 !== 114) continue
		sandbox.at(new Date(Date.UTC(2026, 0, 1, hour, 27)).toISOString())
		const ran = await sandbox.retention(server, { only }, (given) => ({
			...given,
			sources: given.sources.map((source) => (source.name === "r2" ? { name: "r2", store } : source)),
		}))
		runs++
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(onShare()).toEqual(namesOf(oracle(history)))
	}
	expect(runs).toBe(73)
	expect(s3.objects.keys("vault")).toHaveLength(stored * 2)
	expect(stored).toBe(365 * 2)
	expect(s3.log.length).toBeGreaterThan(73)
	expect(s3.log.filter(({ operation }) => /Delete/.test(operation))).toEqual([])
}, 180_000)

test("a dry run says what would go and why, and takes nothing; the run takes exactly that", async () => {
	const history = tenDays()
	const before = onShare()
	const dry = await sandbox.retention(server, { only, dryRun: true })
	expect(dry.outcome("home"), said(dry)).toBe("planned")
	expect(said(dry)).toMatch(/no class keeps 1\d of 20: .*kept: .*\(newest, daily, weekly, monthly\)/)
	expect(onShare()).toEqual(before)
	const ran = await sandbox.retention(server, { only })
	expect(ran.exitCode, said(ran)).toBe(0)
	expect(onShare()).toEqual(namesOf(oracle(history)))
	const again = await sandbox.retention(server, { only })
	expect(again.outcome("home")).toBe("satisfied")
	expect(readdirSync(join(sandbox.second, "sandbox/home"))).toHaveLength(40)
})

test("when the newest snapshot is damaged, nothing goes", async () => {
	const newest = tenDays().at(-1)
	flipBit(join(sandbox.share, "sandbox/home", `${newest?.id}.tar.zst`))
	const before = onShare()
	const ran = await sandbox.retention(server, { only })
	expect(ran.exitCode, said(ran)).toBe(3)
	expect(onShare()).toEqual(before)
	expect(rowOf(ran)).toMatchObject({ ok: false, verified: expect.stringMatching(/nothing goes/) })
})

test("what fails while it removes is no success in the table either, and how far it came is there", async () => {
	tenDays()
	let left = 3
	const ran = await sandbox.retention(server, { only }, (given) => ({
		...given,
		...(given.shareRemover && {
			shareRemover: {
				...given.shareRemover,
				remove: async (...of: Parameters<typeof given.shareRemover.remove>) => {
					if (left-- === 0) throw new Error("the share went away")
					return given.shareRemover?.remove(...of)
				},
			},
		}),
	}))
	expect(ran.outcome("home"), said(ran)).toBe("failed")
	expect(rowOf(ran)).toMatchObject({ ok: false, verified: "3 removed, then: the share went away" })
})

test("a clock that was set back, or a snapshot from the future, stops it", async () => {
	tenDays()
	const before = onShare()
	sandbox.at("2026-11-05T00:00:00Z")
	const ran = await sandbox.retention(server, { only })
	expect(ran.exitCode, said(ran)).toBe(8)
	expect(onShare()).toEqual(before)
})

test("what R2 has nothing as new as stays, and all of it when R2 can't be read", async () => {
	const history = tenDays()
	const directory = join(sandbox.second, "sandbox/home")
	for (const { id } of history.slice(6)) rmSync(join(directory, `${id}.tar.zst.json`))
	const ran = await sandbox.retention(server, { only })
	expect(ran.exitCode, said(ran)).toBe(0)
	const kept = oracle(history)
	const late = history.slice(6).map(({ id }) => id)
	expect(onShare()).toEqual(namesOf(new Set([...kept, ...late])))

	const left = onShare()
	renameSync(sandbox.second, `${sandbox.second}-gone`)
	const blind = await sandbox.retention(server, { only })
	expect(blind.exitCode, said(blind)).toBe(4)
	expect(onShare()).toEqual(left)
})

test("a share that isn't there is refused", async () => {
	tenDays()
	renameSync(sandbox.share, `${sandbox.share}-gone`)
	const ran = await sandbox.retention(server, { only })
	expect(ran.exitCode, said(ran)).toBe(4)
	expect(ran.outcome("home")).toBe("blocked")
})

test("names that can't be read, other hosts' snapshots and unfinished ones are left alone", async () => {
	const history = tenDays()
	const directory = join(sandbox.share, "sandbox/home")
	const foreign = snapshot(new Date("2026-11-03T03:00:00Z"))
	put(sandbox.share, { ...foreign, sidecar: foreign.sidecar.replace("app-1", "app-2") })
	const damaged = snapshot(new Date("2026-11-03T04:00:00Z"))
	put(sandbox.share, { ...damaged, sidecar: damaged.sidecar.slice(5) })
	const strange = ["home-dev-2026-11-03.tar.gz", "20261399T000000Z-000000000000.tar.zst", "notes.txt"]
	const unfinished = "20261103T050000Z-0123456789ab.tar.zst"
	for (const name of [...strange, unfinished]) writeFileSync(join(directory, name), "x")
	const ran = await sandbox.retention(server, { only })
	expect(ran.exitCode, said(ran)).toBe(0)
	const others = [...strange, unfinished, ...namesOf([foreign.id, damaged.id])]
	expect(onShare()).toEqual([...namesOf(oracle(history)), ...others].sort())
})

test("when no snapshot can count, it fails and takes nothing", async () => {
	for (const { id } of tenDays()) writeFileSync(join(sandbox.share, "sandbox/home", `${id}.tar.zst`), "short")
	const before = onShare()
	const ran = await sandbox.retention(server, { only })
	expect(ran.exitCode, said(ran)).toBe(3)
	expect(onShare()).toEqual(before)
})

test("a run that died in a removal is finished by the next, and in between nothing looks whole", async () => {
	const history = tenDays()
	const [oldest] = history
	const sidecar = join(sandbox.share, "sandbox/home", `${oldest?.id}.tar.zst.json`)
	renameSync(sidecar, `${sidecar}.removing`)
	const ran = await sandbox.retention(server, { only })
	expect(ran.exitCode, said(ran)).toBe(0)
	expect(onShare()).toEqual(namesOf(oracle(history)))
})

test("both sides of a shrinking stay for two weeks", async () => {
	const history = tenDays()
	const before = snapshot(new Date("2026-11-11T01:00:00Z"))
	const shrunk = snapshot(new Date("2026-11-11T02:00:00Z"), 1000)
	for (const one of [before, shrunk]) put(sandbox.share, one)
	const ran = await sandbox.retention(server, { only })
	expect(ran.exitCode, said(ran)).toBe(0)
	expect(onShare()).toEqual(namesOf(new Set([...oracle(history), before.id, shrunk.id])))
})

test("the report on R2 counts what would be eligible and changes nothing", async () => {
	tenDays()
	const ran = await sandbox.retention(server, { only, report: true })
	expect(ran.exitCode, said(ran)).toBe(0)
	expect(said(ran)).toMatch(/1\d of 20 snapshots, .* would be eligible; nothing is deleted there/)
	expect(readdirSync(join(sandbox.second, "sandbox/home"))).toHaveLength(40)
})

test("but for the probe that is asked for nothing can delete an object, and only the retention is given what removes from the share", () => {
	const root = new URL("../../../src/", import.meta.url)
	const sources = readdirSync(root, { recursive: true, encoding: "utf8" })
		.filter((name) => name.endsWith(".ts"))
		.map((name) => ({ name, text: readFileSync(new URL(name, root), "utf8") }))
	const namesOfThose = (pattern: RegExp) =>
		sources
			.filter(({ text }) => pattern.test(text))
			.map(({ name }) => name)
			.sort()
	expect(namesOfThose(/DeleteObjects?Command|"DELETE"/)).toEqual(["lib/storage/s3-probe-delete.ts"])
	expect(namesOfThose(/s3-probe-delete\.ts/)).toEqual(["lib/steps/open-buckets.ts"])
	expect(namesOfThose(/\bprobeDelete\(/)).toEqual([
		"lib/steps/doctor-storage.ts",
		"lib/steps/open-buckets.ts",
		"lib/storage/s3-probe-delete.ts",
	])
	expect(namesOfThose(/\b[sS]hareRemover\b/)).toEqual([
		"lib/steps/context.ts",
		"lib/steps/open.ts",
		"lib/steps/retention.ts",
		"lib/storage/share-remover.ts",
	])
})
