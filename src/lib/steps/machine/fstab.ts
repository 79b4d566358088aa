// What is mounted, and what will be after the next boot.
import { readdir } from "node:fs/promises"
import { codeOf, exitCodes, OperatorError, systemError } from "../../errors.ts"
import { type FstabEntry, hasEntry, withEntry } from "../../formats/fstab.ts"
import { command, quoteForShell, withOptions } from "../../host/command.ts"
import type { LocalHost } from "../../host/local.ts"
import type { StepContext } from "../context.ts"

const file = "/etc/fstab"
/** A server that is gone lets `mount` try for minutes. */
const mountTimeoutMs = 150_000

const readFstab = async (host: LocalHost) => (await host.read(file))?.toString() ?? ""

/** Whether the next boot mounts it, with these options and nothing else in its place. */
export const isInFstab = async (host: LocalHost, entry: FstabEntry): Promise<boolean> =>
	hasEntry(await readFstab(host), entry)

/** Writes the entry, unless it is there. All other lines stay; the whole file as it was is kept beside it. */
export async function writeFstab(
	{ host, now }: Pick<StepContext, "host" | "now">,
	entry: FstabEntry,
	note: (text: string) => void,
): Promise<void> {
	const before = await readFstab(host)
	const after = withEntry(before, entry)
	if (after === before) return
	if (before !== "") {
		const stamp = now()
			.toISOString()
			.replaceAll(/[-:]|\.\d+/g, "")
		const kept = `${file}.bak-${stamp}`
		await host.write(kept, before, { mode: 0o644 })
		note(`what stood in ${file} is kept in ${kept}`)
	}
	await host.write(file, after, { mode: 0o644 })
	// systemd makes its mount units of it, and would go by the old ones until the next boot.
	if (await host.test(command("test", "-d", "/run/systemd/system")))
		await host.execute(command("systemctl", "daemon-reload"))
}

/**
 * Data that was written while nothing was mounted there lies on the root disk, and a mount would hide it.
 * @param target a mount point on which nothing is mounted now
 * @throws {OperatorError} (8) naming what lies there
 */
export async function refuseHidden(host: LocalHost, target: string, what: string): Promise<void> {
	const names = await readdir(host.path(target)).catch((error: unknown) => {
		if (codeOf(error) === "ENOENT") return []
		throw systemError(error, `looking into ${target}`)
	})
	if (names.length === 0) return
	const shown = names.sort().slice(0, 5).join(", ")
	const more = names.length > 5 ? ` and ${names.length - 5} more` : ""
	const aside = `${target.replace(/\/+$/, "")}.on-the-root-disk`
	throw new OperatorError(
		`${what} is not mounted at ${target}, and ${shown}${more} ${names.length === 1 ? "lies" : "lie"} there on the root disk: mounting would hide them`,
		{
			exitCode: exitCodes.refusedByGuard,
			hint: `mv ${quoteForShell(target)} ${quoteForShell(aside)}   # and look at it once ${what} is mounted`,
		},
	)
}

/** Mounts what fstab has for a mount point, which is made. */
export async function mountTarget(host: LocalHost, target: string, hint: string): Promise<void> {
	await host.files.makeDirectory(target, 0o755)
	try {
		await host.execute(withOptions(command("mount", "--", target), { timeoutMs: mountTimeoutMs }))
	} catch (error) {
		if (!(error instanceof OperatorError)) throw error
		throw new OperatorError(error.message, { exitCode: exitCodes.unreachable, hint, cause: error })
	}
}
