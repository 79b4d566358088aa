// What a restore brings along beside its context, for tests that plan one by themselves.
import { secretsFromPayload } from "../../src/lib/config/secrets.ts"
import { Secret } from "../../src/lib/secret.ts"
import type { RestoreRun } from "../../src/lib/steps/restore-options.ts"
import type { Twin } from "../../src/lib/tailscale/tailnet.ts"

export const restoreRun = (packageRoot: string, twin: Twin): RestoreRun => ({
	packageRoot,
	twin,
	configuration: { text: "" },
	secrets: secretsFromPayload(new Secret(JSON.stringify({ version: 1, secrets: {} }))),
	dryRun: false,
	hide: () => {},
})
