// Looking at what runs on this machine, for tests that prove that something is gone.
import { readdir, readFile } from "node:fs/promises"

/** The ids of the processes whose command line holds a text. */
export async function processesWith(text: string): Promise<number[]> {
	const found: number[] = []
	for (const entry of await readdir("/proc")) {
		if (!/^\d+$/.test(entry) || Number(entry) === process.pid) continue
		const line = await readFile(`/proc/${entry}/cmdline`, "utf8").catch(() => "")
		if (line.replaceAll("\0", " ").includes(text)) found.push(Number(entry))
	}
	return found
}

/** Asks again and again until the answer is yes. @throws when it isn't within the deadline. */
export async function until(
	what: string,
	condition: () => boolean | Promise<boolean>,
	deadlineMs = 15_000,
): Promise<void> {
	const deadline = Date.now() + deadlineMs
	while (!(await condition())) {
		if (Date.now() > deadline) throw new Error(`not within ${deadlineMs} ms: ${what}`)
		await new Promise((resolve) => setTimeout(resolve, 20))
	}
}
