import { execFileSync } from "node:child_process"
import { join } from "node:path"
import { expect, test } from "vitest"
import { backupTimers, certificatesTimer } from "../../../src/lib/steps/timer-files.ts"

const root = new URL("../../..", import.meta.url).pathname

test.each([...backupTimers, certificatesTimer].map(({ name, words }) => ({ name, words })))(
	"what the timer $name starts is a command with options that it has",
	({ words }) => {
		// An option that there isn't is refused before the configuration is looked for, which isn't there.
		const ran = () =>
			execFileSync("node", [join(root, "src/cli.ts"), ...words, "--config", "/nowhere/comfyume.yaml"], {
				stdio: "pipe",
			})
		expect(ran).toThrow(/\/nowhere\/comfyume\.yaml/)
	},
)
