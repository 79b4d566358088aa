// Secrets put into the kernel's keyring and found there again: the real one, of a user that nobody is, so that neither
// root's nor the tests' neighbours' is touched.
import { mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { afterAll, expect, test } from "vitest"
import { secretsFromPayload } from "../../../src/lib/config/secrets.ts"
import { keyringReader } from "../../../src/lib/host/keyring.ts"
import { localHost } from "../../../src/lib/host/local.ts"
import { runPlan } from "../../../src/lib/plan/run.ts"
import { Secret } from "../../../src/lib/secret.ts"
import type { StepContext } from "../../../src/lib/steps/context.ts"
import { keyringIsLoaded } from "../../../src/lib/steps/machine/secrets-file.ts"
import { describeWith } from "../../support/parts.ts"

describeWith("keyring", "the kernel's keyring", () => {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-keyring-"))
	afterAll(() => rmSync(directory, { recursive: true, force: true }))
	const user = "64117"
	const wrapper = `#!/bin/sh
exec setpriv --reuid=${user} --regid=${user} --clear-groups /usr/bin/keyctl "$@"
`
	writeFileSync(join(directory, "keyctl"), wrapper, { mode: 0o755 })
	const host = localHost({
		name: "app-1",
		environment: { ...process.env, PATH: `${directory}:${process.env["PATH"]}` },
	})
	const load = (values: Record<string, string>) => {
		const secrets = secretsFromPayload(new Secret(JSON.stringify({ version: 1, secrets: values })))
		const said: string[] = []
		return runPlan(
			{
				...{ command: "secrets load", environment: "e", host: "app-1", place: "here" },
				steps: [keyringIsLoaded({ host } as StepContext, secrets)],
			},
			{
				dryRun: false,
				now: () => new Date(0),
				signal: new AbortController().signal,
				reporter: { event: (event) => void said.push(JSON.stringify(event)), close: async () => {} },
			},
		).then(({ exitCode }) => ({ exitCode, said: said.join("\n") }))
	}

	test("holds what was loaded, for another process of the same user too; a newer value takes an older one's place", async () => {
		const first = await load({ HF_TOKEN: "made-up-first $value", GH_TOKEN: "made-up" })
		expect(first.exitCode, first.said).toBe(0)
		expect(first.said).not.toContain("made-up")
		const read = keyringReader(host)
		expect((await read("HF_TOKEN"))?.reveal()).toBe("made-up-first $value")
		expect((await load({ HF_TOKEN: "made-up-second" })).exitCode).toBe(0)
		expect((await read("HF_TOKEN"))?.reveal()).toBe("made-up-second")
		expect((await read("GH_TOKEN"))?.reveal()).toBe("made-up")
		expect(await read("R2_ACCESS_KEY_ID")).toBeUndefined()
	})
})
