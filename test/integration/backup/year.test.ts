// Hour by hour through a year with the plans that cron runs: `backup --scheduled` at 17 past, retention once a day,
// `backup status` now and then. What must be where is worked out beside it, from what the operators were promised and
// from nothing of comfyume's. In `npm test` nine weeks, into which everything falls that happens in the year; all 8 760
// hours with COMFYUME_TEST_RUNS, as at night.
import { randomBytes } from "node:crypto"
import {
	existsSync,
	readdirSync,
	readFileSync,
	renameSync,
	statSync,
	utimesSync,
	writeFileSync,
} from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, expect, test, vi } from "vitest"
import { Secret } from "../../../src/lib/secret.ts"
import { listedOnce } from "../../../src/lib/storage/listed-once.ts"
import { s3Store } from "../../../src/lib/storage/s3.ts"
import { runs } from "../../support/runs.ts"
import { startS3Server } from "../../support/s3-server/index.ts"
import { createSandbox, type Ran, type Sandbox } from "../../support/sandbox.ts"

const hours = (runs(1) > 1 ? 365 : 64) * 24
const hourMs = 60 * 60 * 1000
const dayMs = 24 * hourMs
const beginMs = Date.UTC(2026, 0, 30)
const slotsOfR2 = [2, 6, 14, 18]
const artifacts = ["fail2ban", "env-file"] as const
type Artifact = (typeof artifacts)[number]
const files: Record<Artifact, string> = {
	fail2ban: "etc/fail2ban/jail.local",
	"env-file": "home/dev/project/.env",
}

/** Days from the beginning, the end excluded. */
const within = (hour: number, [first, end]: readonly [number, number]) =>
	hour >= first * 24 && hour < end * 24
const serverDown = [5, 8] as const
const monthUnchanged = [10, 40] as const
const shareGone = [42, 49] as const
const bucketRefuses = [50, 53] as const
/** Then fail2ban is half of what it was before. */
const shrinksAt = 56 * 24 + 10
/** For one run the clock is five and a half hours ahead, which is another month. */
const clockAheadAt = 60 * 24 + 20

let sandbox: Sandbox
let server: string
beforeEach(async () => {
	if (existsSync("/dev/shm")) vi.stubEnv("TMPDIR", "/dev/shm")
	sandbox = await createSandbox()
	server = await sandbox.fillServer()
})
afterEach(() => {
	sandbox[Symbol.dispose]()
	vi.unstubAllEnvs()
})

const said = ({ events }: Ran) => JSON.stringify(events)
const stampOf = (ms: number) => new Date(ms).toISOString().replace(/\.\d+|[-:]/g, "")

/** Content that doesn't get smaller by packing, as text. */
const content = (bytes: number) => `A=${randomBytes(bytes / 2).toString("hex")}\n`

/** What an artifact holds changes on workdays at 9 and at 16, with the hours of the two artifacts apart. */
function changes(hour: number, artifact: Artifact): boolean {
	if (within(hour, monthUnchanged)) return false
	if (hour === shrinksAt) return artifact === "fail2ban"
	// Something to store while the clock is wrong, and while it is behind what was stored then.
	if (hour === clockAheadAt || hour === clockAheadAt + 2) return artifact === "fail2ban"
	const day = new Date(beginMs + hour * hourMs).getUTCDay()
	return day > 0 && day < 6 && (hour % 24 === 9 || (hour % 24 === 16 && artifact === "env-file"))
}

/** The second of a snapshot's name, and which state of the files it holds. */
type Kept = { atMs: number; state: number; shrunk: boolean }

/** Worked out by going through all there is: the last of each of the last so many spans that have one. */
function promised(all: readonly Kept[]): Kept[] {
	const lastOf = (span: (atMs: number) => number | string, most: number) => {
		const last = new Map<number | string, Kept>()
		for (const one of all) last.set(span(one.atMs), one)
		return [...last.values()].slice(-most)
	}
	// Day 4 of 1970 was a Monday.
	const mondays = (atMs: number) => Math.floor((Math.floor(atMs / dayMs) - 4) / 7)
	const newestMs = all.at(-1)?.atMs ?? 0
	const kept = new Set([
		...lastOf((atMs) => Math.floor(atMs / dayMs), 5),
		...lastOf(mondays, 3),
		...lastOf((atMs) => new Date(atMs).toISOString().slice(0, 7), 3),
		// Both sides of a shrinking, for two weeks.
		...all.filter((one, index) =>
			[one, all[index + 1]].some((other) => other?.shrunk === true && newestMs - other.atMs <= 14 * dayMs),
		),
	])
	return all.filter((one) => kept.has(one))
}

const namesIn = (keys: readonly string[], artifact: Artifact) =>
	keys.filter((key) => key.startsWith(`sandbox/${artifact}/`)).map((key) => key.split("/")[2] ?? "")
const expectedNames = (kept: readonly Kept[]) => kept.flatMap(({ atMs }) => [stampOf(atMs), stampOf(atMs)])
/** Without the digests, which say nothing of when. */
const stampsOf = (names: readonly string[]) => names.map((name) => name.slice(0, 16)).sort()

test(
	`${hours} hourly runs: both places hold what was promised, to the name, and grow as predicted`,
	async () => {
		const keys = { accessKeyId: new Secret("year-key"), secretAccessKey: new Secret("year-secret") }
		await using s3 = await startS3Server({
			buckets: ["vault"],
			credentials: [{ accessKeyId: "year-key", secretAccessKey: "year-secret" }],
		})
		const open = (secretAccessKey: Secret) =>
			s3Store({ ...keys, secretAccessKey, name: "r2", endpoint: s3.endpoint, bucket: "vault" })
		await using bucket = open(keys.secretAccessKey)
		await using refused = open(new Secret("another-secret"))
		const onShare = () =>
			readdirSync(sandbox.share, { recursive: true, withFileTypes: true })
				.filter((entry) => entry.isFile() && !entry.name.startsWith("."))
				.map((entry) => join(entry.parentPath, entry.name).slice(sandbox.share.length + 1))

		let state = 0
		const live: Record<Artifact, number> = { fail2ban: 0, "env-file": 0 }
		const share: Record<Artifact, Kept[]> = { fail2ban: [], "env-file": [] }
		const r2: Record<Artifact, Kept[]> = { fail2ban: [], "env-file": [] }
		/** The last time each place is known to have had the newest state: a snapshot's or a record's. */
		const known = { share: new Map<Artifact, number>(), r2: new Map<Artifact, number>() }
		const records = { share: [] as number[], r2: [] as number[] }
		let shrinking = false
		let hasShrunk = false
		let aheadMs = 0
		const counts = { backups: 0, retentions: 0, statuses: 0, refused: 0 }

		for (let hour = 0; hour < hours; hour++) {
			const nowMs = beginMs + hour * hourMs + 17 * 60 * 1000
			for (const artifact of artifacts) {
				if (hour > 0 && !changes(hour, artifact)) continue
				live[artifact] = ++state
				shrinking ||= hour === shrinksAt
				writeFileSync(
					join(server, files[artifact]),
					content(shrinking && artifact === "fail2ban" ? 1000 : 4000),
				)
			}
			if (within(hour, serverDown)) continue
			if (hour === shareGone[0] * 24) renameSync(sandbox.share, `${sandbox.share}-gone`)
			if (hour === shareGone[1] * 24) renameSync(`${sandbox.share}-gone`, sandbox.share)
			const hasShare = !within(hour, shareGone)
			const hasBucket = !within(hour, bucketRefuses)
			sandbox.setObjectStore(() => listedOnce(hasBucket ? bucket : refused, "sandbox/"))

			// The clock, as this run sees it.
			const atMs = hour === clockAheadAt ? nowMs + 5.5 * hourMs : nowMs
			sandbox.at(new Date(atMs).toISOString())

			// What this run must do.
			const behind = atMs < aheadMs
			let fails = !hasShare || !hasBucket
			const slotOf = (place: "share" | "r2") => {
				const hourOfDay = new Date(atMs).getUTCHours()
				const midnightMs = Math.floor(atMs / dayMs) * dayMs
				if (place === "share") return midnightMs + hourOfDay * hourMs
				const last = slotsOfR2.findLast((slot) => slot <= hourOfDay)
				return last === undefined ? midnightMs - dayMs + 18 * hourMs : midnightMs + last * hourMs
			}
			const unchanged = { share: false, r2: false }
			for (const artifact of artifacts) {
				const here = { share: share[artifact], r2: r2[artifact] }
				const due = (["share", "r2"] as const).filter((place) => {
					const usable = place === "share" ? hasShare : hasBucket
					return !usable || (known[place].get(artifact) ?? 0) < slotOf(place)
				})
				const usable = due.filter((place) => (place === "share" ? hasShare : hasBucket))
				const newestIn = (place: "share" | "r2") => {
					const reachable = place === "share" ? hasShare : hasBucket
					return reachable ? here[place].at(-1) : undefined
				}
				const lacking = usable.filter((place) => newestIn(place)?.state !== live[artifact])
				if (lacking.length > 0) {
					const copied = [newestIn("share"), newestIn("r2")].find((one) => one?.state === live[artifact])
					const before = [newestIn("share"), newestIn("r2")]
						.filter((one) => one !== undefined)
						.sort((a, b) => a.atMs - b.atMs)
						.at(-1)
					if (copied === undefined && before !== undefined && before.atMs > atMs) {
						// Nothing is dated before what is there.
						fails = true
						continue
					}
					const taken: Kept = copied ?? {
						atMs,
						state: live[artifact],
						shrunk: artifact === "fail2ban" && shrinking && !hasShrunk,
					}
					fails ||= copied === undefined && taken.shrunk
					hasShrunk ||= taken.shrunk
					for (const place of lacking) {
						here[place].push(taken)
						here[place].sort((a, b) => a.atMs - b.atMs)
						if (hour !== clockAheadAt) known[place].set(artifact, taken.atMs)
					}
				}
				// What was due and is still not newer than its slot was looked at, and noted.
				for (const place of usable) {
					if (behind && (here[place].at(-1)?.atMs ?? 0) > atMs) continue
					if ((known[place].get(artifact) ?? 0) >= slotOf(place)) continue
					unchanged[place] = true
					// What is dated ahead of the clock is no evidence, until it isn't any more.
					if (hour !== clockAheadAt) known[place].set(artifact, atMs)
				}
			}
			for (const place of ["share", "r2"] as const) if (unchanged[place]) records[place].push(atMs)
			if (hour === clockAheadAt) aheadMs = atMs

			const ran = await sandbox.backup(server, { only: [...artifacts], scheduled: true })
			counts.backups++
			const when = `hour ${hour}, ${new Date(atMs).toISOString()}`
			if (!behind) expect(ran.exitCode === 0, `${when}: ${said(ran)}`).toBe(!fails)
			if (ran.exitCode !== 0) counts.refused++
			// On the share the records are aged by when they were stored, and that was minutes ago.
			const directory = join(sandbox.share, "sandbox/records/backups/app-1")
			const record = join(directory, `${stampOf(atMs)}.json`)
			if (existsSync(record)) utimesSync(record, atMs / 1000, atMs / 1000)

			if (hour % 24 === 20 && hour !== clockAheadAt && !behind) {
				const swept = await sandbox.retention(server, { only: [...artifacts] })
				counts.retentions++
				// R2 is asked only when something would go.
				const goes = artifacts.some((artifact) => promised(share[artifact]).length < share[artifact].length)
				expect(swept.exitCode === 0, `${when}: ${said(swept)}`).toBe(hasShare && (hasBucket || !goes))
				if (hasShare && hasBucket)
					for (const artifact of artifacts) {
						const newestOffSite = r2[artifact].at(-1)?.atMs ?? 0
						const kept = new Set(promised(share[artifact]))
						share[artifact] = share[artifact].filter((one) => kept.has(one) || one.atMs > newestOffSite)
					}
				const newestRecord = records.share.at(-1) ?? 0
				if (hasShare) records.share = records.share.filter((one) => newestRecord - one <= 31 * dayMs)
			}
			if (hour % 24 === 20 || hour === hours - 1) {
				if (hasShare)
					for (const artifact of artifacts)
						expect(stampsOf(namesIn(onShare(), artifact)), `${when}, the share`).toEqual(
							expectedNames(share[artifact]),
						)
				for (const artifact of artifacts)
					expect(stampsOf(namesIn(s3.objects.keys("vault"), artifact)), `${when}, R2`).toEqual(
						expectedNames(r2[artifact]),
					)
			}
			if (hour % 24 === 21 && !behind) {
				const asked = await sandbox.status(server, { only: [...artifacts] })
				counts.statuses++
				expect(asked.exitCode === 0, `${when}: ${said(asked)}`).toBe(hasShare && hasBucket)
			}
		}

		// Nothing was ever deleted there, nor aborted, nor written twice.
		const operations = Map.groupBy(s3.log, ({ operation }) => operation)
		expect([...operations.keys()].filter((name) => /Delete|Abort/.test(name))).toEqual([])
		const stored = (operations.get("PutObject") ?? []).filter(({ status }) => status === 200)
		expect(stored).toHaveLength(s3.objects.keys("vault").length)

		// So many files, and so many bytes as these files have: a snapshot is one size until it shrinks, then another.
		const inVault = await Promise.all(
			s3.objects
				.keys("vault")
				.map(async (key) => [key, (await s3.objects.read("vault", key)).length] as const),
		)
		const places = [
			{
				files: onShare().map((key) => [key, statSync(join(sandbox.share, key)).size] as const),
				held: share,
				noted: records.share,
			},
			{ files: inVault, held: r2, noted: records.r2 },
		]
		for (const { files: found, held, noted } of places) {
			const recordsFound = found.filter(([key]) => key.startsWith("sandbox/records/"))
			expect(recordsFound.map(([key]) => key.slice(-21, -5)).sort()).toEqual(noted.map(stampOf).sort())
			const bytes = (some: typeof found) => some.reduce((sum, [, size]) => sum + size, 0)
			for (const artifact of artifacts) {
				const archives = found.filter(
					([key]) => key.startsWith(`sandbox/${artifact}/`) && key.endsWith(".zst"),
				)
				const large = held[artifact].filter(
					(one) => one.atMs < beginMs + shrinksAt * hourMs || artifact !== "fail2ban",
				)
				const predicted = large.length * 4000 + (held[artifact].length - large.length) * 1000
				// Hexadecimal text packs into half of its length and a little; the headers are a few hundred bytes.
				expect(bytes(archives), artifact).toBeGreaterThan(predicted * 0.5)
				expect(bytes(archives) - predicted * 0.5, artifact).toBeLessThan(archives.length * 450)
			}
			// A record names two snapshots at most.
			expect(bytes(recordsFound)).toBeLessThan(recordsFound.length * 400)
		}
		expect(counts.backups).toBe(hours - 3 * 24)
		expect(counts.retentions).toBeGreaterThan(hours / 24 - 6)
		expect(counts.statuses).toBeGreaterThan(hours / 24 - 6)
		expect(readFileSync(join(sandbox.share, "sandbox/.comfyume.lock"), "utf8")).toMatch(/^\d+ free, /)
	},
	runs(1) > 1 ? 7_200_000 : 1_200_000,
)
