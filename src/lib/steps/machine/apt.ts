// apt and dpkg as they are asked to change a machine: without questions, and waiting for whoever is at it already.
import { setTimeout as pause } from "node:timers/promises"
import { exitCodes, OperatorError } from "../../errors.ts"
import { type LockHolder, lockHolderOf } from "../../formats/dpkg.ts"
import { type Command, command, describe, withOptions } from "../../host/command.ts"
import { lastLines } from "../../host/failures.ts"
import type { Finished } from "../../host/host.ts"
import type { LocalHost } from "../../host/local.ts"

export type AptOptions = {
	host: LocalHost
	signal: AbortSignal
	/** How long another program may hold the locks. */
	lockWaitMs: number
	/** Told once per lock: who is waited for. */
	onWait: (text: string) => void
}

/** Of one command: an upgrade of a fresh machine unpacks some hundred packages. */
const longestMs = 30 * 60_000
const askAgainMs = 500

// A fresh machine's own timers hold the locks at its first boot. needrestart would ask which services to restart.
const quietly = {
	DEBIAN_FRONTEND: "noninteractive",
	APT_LISTCHANGES_FRONTEND: "none",
	NEEDRESTART_SUSPEND: "1",
	UCF_FORCE_CONFFOLD: "1",
	LC_ALL: "C.UTF-8",
}
const aptGet = [
	...["--quiet", "--yes", "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"],
	...["-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30", "-o", "Acquire::https::Timeout=30"],
	// What is waited for, and for how long, is said here and not by apt.
	...["-o", "DPkg::Lock::Timeout=0"],
]

/**
 * Runs `apt-get`. Its exit code is 0 also where not all of a list was fetched: read what it printed.
 * @throws {OperatorError} (5) when a lock isn't given up in time, naming its holder; (3) when it fails
 */
export const apt = (options: AptOptions, ...words: readonly string[]): Promise<Finished> =>
	withLocks(options, command("apt-get", ...aptGet, ...words))

/** Finishes what a killed dpkg left unpacked. Nothing happens where nothing is left. */
export const finishInterrupted = (options: AptOptions): Promise<Finished> =>
	withLocks(options, command("dpkg", "--force-confdef", "--force-confold", "--configure", "--pending"))

async function withLocks(options: AptOptions, asked: Command): Promise<Finished> {
	const { host, signal, lockWaitMs, onWait } = options
	const quiet = withOptions(asked, { environment: quietly, timeoutMs: longestMs })
	const deadline = performance.now() + lockWaitMs
	for (let told: string | undefined; ; ) {
		// Both end with 100 or 2 for whatever goes wrong; what it was stands in what they say.
		const ended = await host.execute(quiet, { allowedExitCodes: [1, 2, 100] })
		if (ended.exitCode === 0) return ended
		const holder = lockHolderOf(ended.stderr)
		if (holder === undefined)
			throw new OperatorError(`${short(asked)} on ${host.name}: ${lastLines(ended.stderr)}`, {
				hint: hintFor(ended.stderr),
			})
		if (performance.now() > deadline)
			throw new OperatorError(`${describeHolder(holder)} since more than ${seconds(lockWaitMs)}`, {
				exitCode: exitCodes.locked,
				hint: holder.processId === undefined ? "ps -ef | grep -E 'apt|dpkg'" : `ps -fp ${holder.processId}`,
			})
		const text = `${describeHolder(holder)}; waiting for it`
		if (text !== told) onWait(text)
		told = text
		await pause(askAgainMs, undefined, { signal })
	}
}

function describeHolder({ lock, processId, program }: LockHolder): string {
	const who =
		processId === undefined ? "another program" : `${program ?? "another program"} (process ${processId})`
	return `${who} holds ${lock ?? "the lock of apt or dpkg"}`
}

const seconds = (milliseconds: number) => `${Math.round(milliseconds / 1000)} s`

// Without the options, which are always the same.
const short = ({ program, args }: Command) =>
	describe(command(program, ...args.slice(program === "apt-get" ? aptGet.length : 0)))

function hintFor(complaint: string): string {
	if (/unmet dependencies|held broken|fix-broken/i.test(complaint)) return "apt-get --fix-broken install"
	if (/Could not resolve|Temporary failure resolving|Unable to connect|Failed to fetch/.test(complaint))
		return "curl -sI https://deb.debian.org; cat /etc/resolv.conf   # does the machine reach the outside?"
	return "look at /var/log/apt/term.log; then run this again"
}
