// A sidecar that was damaged where it stands, at its own size: the next backup puts it right, though nothing has changed.
import { readdirSync, readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { directoryStore } from "../../../src/lib/storage/directory.ts"
import type { ObjectStore } from "../../../src/lib/storage/object-store.ts"
import { createSandbox, type Sandbox } from "../../support/sandbox.ts"

let sandbox: Sandbox
let server: string
beforeEach(async () => {
	sandbox = await createSandbox()
	server = await sandbox.fillServer()
})
afterEach(() => sandbox[Symbol.dispose]())

const only = ["ufw"]
const said = (ran: { events: readonly unknown[] }) => JSON.stringify(ran.events, null, 1)
const sidecars = (place: string, ending = ".json") =>
	readdirSync(join(place, "sandbox/ufw"))
		.filter((name) => name.endsWith(ending))
		.sort()
const fileOf = (place: string) => join(place, "sandbox/ufw", sidecars(place)[0] ?? "")

const damages: readonly (readonly [string, (text: string) => string])[] = [
	["no JSON any more", (text) => text.replace("{", "[")],
	[
		"another digest of its content",
		(text) =>
			text.replace(
				/("treeDigest": ")(.)/,
				(_, before: string, digit: string) => `${before}${digit === "0" ? "1" : "0"}`,
			),
	],
	[
		"another size of its archive",
		(text) => text.replace(/("sizeBytes": \d*)(\d)/, (_, before, digit) => `${before}${9 - digit}`),
	],
]

function damage(place: string, change: (text: string) => string): void {
	const text = readFileSync(fileOf(place), "utf8")
	const changed = change(text)
	expect([changed === text, changed.length]).toEqual([false, text.length])
	writeFileSync(fileOf(place), changed)
}

/** A store as R2 is: what stands there is never replaced. */
function withoutReplacing(store: ReturnType<typeof directoryStore>): ObjectStore {
	const { setAside: _, ...others } = store
	return others
}

describe.each(damages)("with %s", (_what, change) => {
	test("on the share it is set aside and put anew, and all is well again", async () => {
		expect((await sandbox.backup(server, { only })).exitCode).toBe(0)
		const right = readFileSync(fileOf(sandbox.share), "utf8")
		damage(sandbox.share, change)
		sandbox.later(60)
		const ran = await sandbox.backup(server, { only })
		expect(ran.exitCode, said(ran)).toBe(0)
		expect(readFileSync(fileOf(sandbox.share), "utf8")).toBe(right)
		const kept = readdirSync(join(sandbox.share, "sandbox/ufw")).filter((name) => name.includes(".bad-"))
		expect(kept).toHaveLength(1)
		const again = await sandbox.backup(server, { only })
		expect([again.exitCode, again.outcome("ufw")]).toEqual([0, "satisfied"])
	})

	test("in R2, where nothing is replaced, --full is what helps, and it is said", async () => {
		sandbox.setObjectStore(() => withoutReplacing(directoryStore({ name: "r2", directory: sandbox.second })))
		expect((await sandbox.backup(server, { only })).exitCode).toBe(0)
		damage(sandbox.second, change)
		sandbox.later(60)
		const ran = await sandbox.backup(server, { only })
		expect(ran.exitCode, said(ran)).toBe(3)
		expect(said(ran)).toMatch(/stands damaged on r2, where nothing is replaced/)
		expect(said(ran)).toContain("comfyume backup --env sandbox --only ufw --full")
		sandbox.later(60)
		const full = await sandbox.backup(server, { only, full: true })
		expect(full.exitCode, said(full)).toBe(0)
		expect(sidecars(sandbox.second)).toHaveLength(2)
		sandbox.later(60)
		const again = await sandbox.backup(server, { only })
		expect([again.exitCode, again.outcome("ufw")]).toEqual([0, "satisfied"])
	})
})
