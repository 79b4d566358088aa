// What locks a bucket: R2's rules by Cloudflare's API (a stand-in here), S3's object lock, and the attempt to delete.

import { readFileSync } from "node:fs"
import { createServer } from "node:http"
import type { AddressInfo } from "node:net"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { loadSecrets } from "../../../src/lib/config/secrets.ts"
import { OperatorError } from "../../../src/lib/errors.ts"
import type { Event } from "../../../src/lib/plan/events.ts"
import { runPlan } from "../../../src/lib/plan/run.ts"
import { Secret } from "../../../src/lib/secret.ts"
import { storageSteps } from "../../../src/lib/steps/doctor-storage.ts"
import { openBuckets } from "../../../src/lib/steps/open-buckets.ts"
import { covers, type LockRule, readLockRules } from "../../../src/lib/storage/bucket-lock.ts"
import { readObjectLock } from "../../../src/lib/storage/s3-lock.ts"
import { probeDelete } from "../../../src/lib/storage/s3-probe-delete.ts"
import { startCloudflareApi } from "../../support/cloudflare-api.ts"
import { type S3ServerOptions, startS3Server } from "../../support/s3-server/index.ts"
import { createSandbox } from "../../support/sandbox.ts"

const accountId = "0123456789abcdef0123456789abcdef"
const token = "made-up-cloudflare-token"
const signal = new AbortController().signal
const thrown = async (work: Promise<unknown>): Promise<OperatorError> => {
	const error = await work.then(
		() => undefined,
		(reason: unknown) => reason,
	)
	if (error instanceof OperatorError) return error
	throw new Error(`no OperatorError: ${String(error)}`)
}

describe("R2's lock rules", () => {
	let cloudflare: Awaited<ReturnType<typeof startCloudflareApi>>
	beforeAll(async () => {
		cloudflare = await startCloudflareApi({
			token,
			accountId,
			buckets: {
				"eu/backups": [
					{ id: "keep", enabled: true, prefix: "", condition: { type: "Age", maxAgeSeconds: 34_560_000 } },
					{
						id: "audit",
						enabled: true,
						prefix: "staging/",
						condition: { type: "Date", date: "2027-01-01T00:00:00Z" },
					},
					{ id: "old", enabled: false, condition: { type: "Indefinite" } },
				],
				"eu/open": [],
			},
		})
	})
	afterAll(() => cloudflare[Symbol.asyncDispose]())
	const ask = (change: Partial<Parameters<typeof readLockRules>[0]> = {}) =>
		readLockRules({
			...{
				api: cloudflare.api,
				token: new Secret(token),
				accountId,
				bucket: "backups",
				jurisdiction: "eu",
				signal,
			},
			...change,
		})

	test("are read with what they cover, and for how long", async () => {
		expect(await ask()).toEqual([
			{ name: "keep", enabled: true, prefix: "", lasts: { kind: "seconds", seconds: 34_560_000 } },
			{
				name: "audit",
				enabled: true,
				prefix: "staging/",
				lasts: { kind: "until", date: new Date("2027-01-01") },
			},
			{ name: "old", enabled: false, prefix: "", lasts: { kind: "always" } },
		])
		expect(await ask({ bucket: "open" })).toEqual([])
	})

	test.each([
		["a wrong token", { token: new Secret("another") }, 6, /CLOUDFLARE_API_TOKEN/],
		["another account", { accountId: "f".repeat(32) }, 6, /CLOUDFLARE_API_TOKEN/],
		[
			"a bucket of another jurisdiction",
			{ jurisdiction: "default" as const },
			3,
			/no bucket backups with the jurisdiction default/,
		],
		["nobody who listens", { api: "http://127.0.0.1:9/client/v4" }, 4, /can't be reached/],
	])("%s is told by its name", async (_, change, exitCode, says) => {
		const error = await thrown(ask(change))
		expect(error.exitCode).toBe(exitCode)
		expect(error.message).toMatch(says)
		expect(`${error.message} ${error.hint}`).not.toContain(token)
	})

	test.each([
		["an HTML page", 200, "<html></html>", {}, 3],
		[
			"rules of a kind that isn't known",
			200,
			JSON.stringify({
				success: true,
				result: { rules: [{ id: "x", enabled: true, condition: { type: "Moon" } }] },
			}),
			{},
			3,
		],
		["a failure with status 200", 200, JSON.stringify({ success: false, result: {} }), {}, 3],
		["a failure of its own", 500, "", {}, 4],
		["a redirect", 302, "", { location: "http://127.0.0.1:9/" }, 3],
	])("%s is no answer, and no lock", async (_, status, body, headers, exitCode) => {
		const server = createServer((_request, response) => response.writeHead(status, headers).end(body))
		await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
		try {
			const error = await thrown(ask({ api: `http://127.0.0.1:${(server.address() as AddressInfo).port}` }))
			expect([error.exitCode, error.message]).toEqual([exitCode, expect.stringMatching(/makes no sense/)])
		} finally {
			server.close()
		}
	})

	test("hold where they are on, begin as the key does, and aren't over", () => {
		const rule: LockRule = { name: "x", enabled: true, prefix: "", lasts: { kind: "always" } }
		const now = new Date("2026-11-21T00:00:00Z")
		const until = (date: string): LockRule => ({ ...rule, lasts: { kind: "until", date: new Date(date) } })
		expect(covers(rule, "production/", now)).toBe(true)
		expect(covers({ ...rule, enabled: false }, "production/", now)).toBe(false)
		expect(covers({ ...rule, prefix: "production/" }, "production/", now)).toBe(true)
		expect(covers({ ...rule, prefix: "production/home/" }, "production/", now)).toBe(false)
		expect(covers({ ...rule, prefix: "staging/" }, "production/", now)).toBe(false)
		expect(covers(until("2026-11-20"), "production/", now)).toBe(false)
		expect(covers(until("2026-11-22"), "production/", now)).toBe(true)
	})
})

describe("what `doctor` says of a bucket of R2", () => {
	const endpoint = `https://${accountId}.eu.r2.cloudflarestorage.com`
	const rule = { id: "keep", enabled: true, prefix: "", condition: { type: "Indefinite" } }

	/** The findings on endpoint and lock; the bucket itself is asked nothing. */
	async function look(
		rules: readonly object[],
		{ role = "cache", withToken = true, jurisdiction = "eu" } = {},
	) {
		await using cloudflare = await startCloudflareApi({ token, accountId, buckets: { "eu/backups": rules } })
		using sandbox = await createSandbox()
		const configuration = { bucket: "backups", endpoint, jurisdiction: jurisdiction as "eu" }
		const environment = {
			...sandbox.environment,
			objectStore: {
				provider: "r2" as const,
				region: "auto",
				buckets: { cache: configuration, [role]: configuration },
			},
		}
		const secrets = await loadSecrets({
			variables: withToken ? { CLOUDFLARE_API_TOKEN: token } : {},
			workingDirectory: sandbox.directory,
			systemDirectory: sandbox.directory,
		})
		const found = { api: cloudflare.api, token: secrets.find("CLOUDFLARE_API_TOKEN") }
		const buckets = openBuckets(environment, secrets, { cloudflare: found, signal })
		const context = {
			...(await sandbox.context(await sandbox.freshServer("fresh"), [])),
			environment,
			buckets,
		}
		const steps = storageSteps(context, [], { probeDelete: false })
		const wanted = steps.filter(({ id }) => id === `${role}/lock` || id === `${role}/endpoint`)
		const plan = { command: "doctor", environment: "sandbox", host: "app-1", place: "here", steps: wanted }
		const events: Event[] = []
		const { exitCode } = await runPlan(plan, {
			...{ dryRun: false, checksOnly: true, now: () => new Date("2026-11-21T06:00:00Z"), signal },
			reporter: { event: (event) => void events.push(event), close: async () => {} },
		})
		const ended = events.flatMap((event) => (event.event === "step" ? [event] : []))
		const lock = ended.find(({ step }) => step === `${role}/lock`)
		const asked = cloudflare.requests.length
		return { exitCode, lock, asked, ended, notes: events.filter(({ event }) => event === "note") }
	}

	test("a rule for everything: all rules are shown", async () => {
		const { exitCode, lock } = await look([rule, { ...rule, id: "off", enabled: false, prefix: "x/" }])
		expect([exitCode, lock?.because]).toEqual([
			0,
			"keep: everything, for ever; off (off): what begins with x/, for ever",
		])
	})

	test.each([
		["no rule", []],
		["a rule that is off", [{ ...rule, enabled: false }]],
		["a rule for another environment", [{ ...rule, prefix: "production/" }]],
		["a rule that is over", [{ ...rule, condition: { type: "Date", date: "2026-11-20T00:00:00Z" } }]],
	])("%s: not locked, with the command that locks it", async (_, rules) => {
		const { exitCode, lock } = await look(rules)
		expect([exitCode, lock?.outcome]).toEqual([3, "failed"])
		expect(lock?.hint).toMatch(/^npx wrangler r2 bucket lock add backups .*--jurisdiction eu/)
	})

	test("of the models' bucket a rule for one environment isn't enough", async () => {
		expect((await look([{ ...rule, prefix: "sandbox/" }])).exitCode).toBe(0)
		expect((await look([{ ...rule, prefix: "sandbox/" }], { role: "models" })).exitCode).toBe(3)
	})

	test("without a token it isn't proven, nobody is asked, and nothing fails", async () => {
		const { exitCode, lock, asked, notes } = await look([rule], { withToken: false })
		expect([exitCode, lock?.because, asked]).toEqual([0, "not proven", 0])
		expect(JSON.stringify(notes)).toMatch(/set CLOUDFLARE_API_TOKEN/)
	})

	test("another jurisdiction than the endpoint's is told", async () => {
		const { exitCode, ended } = await look([rule], { jurisdiction: "default" })
		expect(exitCode).not.toBe(0)
		expect(ended.map(({ outcome }) => outcome)).toEqual(["failed", "failed"])
	})
})

describe("the attempt to delete", () => {
	const keys = { accessKeyId: "probe-key", secretAccessKey: "probe-secret" }
	const origin = {
		...{ environment: "sandbox", host: "app-1", at: new Date("2026-11-21T06:00:00Z"), randomId: "0123abcd" },
		comfyume: "0.0.0-test",
	}
	const key = "sandbox/records/probes/app-1/20261121T060000Z-0123abcd.json"

	async function attempt(options: Partial<S3ServerOptions>, stands = false) {
		const s3 = await startS3Server({ buckets: ["vault"], credentials: [keys], ...options })
		const bucket = {
			...{ name: "cache", endpoint: s3.endpoint, bucket: "vault", region: "auto", signal },
			...{ accessKeyId: new Secret(keys.accessKeyId), secretAccessKey: new Secret(keys.secretAccessKey) },
		}
		const object = { etag: '"x"', storedAt: new Date(0), metadata: {}, contentType: "text/plain" }
		await s3.objects.write("vault", { ...object, key: "sandbox/home/a" }, Buffer.from("a backup"))
		if (stands) await s3.objects.write("vault", { ...object, key }, Buffer.from("somebody else's"))
		const ended = await probeDelete(bucket, origin).catch((error: OperatorError) => error)
		const locks = await readObjectLock(bucket)
		await s3.close()
		const deleted = s3.log.filter(({ operation }) => /^DeleteObject/.test(operation))
		return { ended, locks, deleted: deleted.map((entry) => entry.key), left: s3.objects.keys("vault") }
	}

	test("that a lock refuses proves it, and the probe stays", async () => {
		const { ended, locks, deleted, left } = await attempt({ deletes: "locked" })
		expect(ended).toEqual({ key, outcome: "locked" })
		expect(locks).toMatchObject([{ name: "COMPLIANCE", lasts: { seconds: 400 * 24 * 60 * 60 } }])
		expect(deleted).toEqual([key])
		expect(left).toEqual(["sandbox/home/a", key])
	})

	test("that succeeds is told, and takes nothing but the probe", async () => {
		const { ended, locks, deleted, left } = await attempt({ deletes: "allowed" })
		expect(ended).toEqual({ key, outcome: "deleted" })
		expect(locks).toEqual([])
		expect(deleted).toEqual([key])
		expect(left).toEqual(["sandbox/home/a"])
	})

	test("that the credentials may not make says nothing about the lock", async () => {
		expect((await attempt({ deletes: "denied" })).ended).toEqual({ key, outcome: "denied" })
	})

	test("that only hides the object is told apart", async () => {
		expect((await attempt({ deletes: "versioned" })).ended).toEqual({ key, outcome: "hidden" })
	})

	test("is not made where something stands under the probe's name", async () => {
		const { ended, deleted, left } = await attempt({ deletes: "allowed" }, true)
		expect(ended).toMatchObject({ exitCode: 8 })
		expect(deleted).toEqual([])
		expect(left).toContain(key)
	})

	test("is not made when the probe can't be stored", async () => {
		const { ended, deleted } = await attempt({
			deletes: "allowed",
			credentials: [{ ...keys, denies: ["PutObject"] }],
		})
		expect(ended).toMatchObject({ exitCode: 6 })
		expect(deleted).toEqual([])
	})

	test("can't be made of a key that anybody names: the key is no argument, and its form is checked", async () => {
		const source = readFileSync(
			new URL("../../../src/lib/storage/s3-probe-delete.ts", import.meta.url),
			"utf8",
		)
		expect(source.match(/DeleteObjectCommand\(/g)).toHaveLength(1)
		expect(source.match(/^export (async )?function (\w+)/gm)).toEqual(["export async function probeDelete"])
		for (const environment of ["sandbox/home", "..", "a b", ""])
			await expect(probeDelete({} as never, { ...origin, environment })).rejects.toThrow(/no probe's key/)
	})
})
