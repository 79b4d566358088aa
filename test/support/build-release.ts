// Before the e2e tests: the release that they put on hosts, built once for all files. Two at once would disturb each other.
import { run } from "./run.ts"

export async function setup(): Promise<void> {
	await run(process.execPath, ["scripts/release.ts"], { timeoutMs: 120_000 })
}
