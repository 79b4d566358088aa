// The share on this machine: it can be reached, it is mounted, now and after the next boot, and it is a volume of this
// environment. An unmounted share is never written to: whatever writes asks right before.
import { link, open, readdir, rm } from "node:fs/promises"
import { connect } from "node:net"
import { join } from "node:path"
import { type ShareConfiguration, stackOf } from "../../config/environment.ts"
import { codeOf, exitCodes, OperatorError, systemError } from "../../errors.ts"
import type { FstabEntry } from "../../formats/fstab.ts"
import type { MountCommand } from "../../formats/mount-command.ts"
import { renderSentinel, sentinelName } from "../../formats/share-sentinel.ts"
import { quoteForShell } from "../../host/command.ts"
import type { LocalHost } from "../../host/local.ts"
import { syncPath } from "../../host/sync.ts"
import { type Finding, needed, type Step, satisfied } from "../../plan/step.ts"
import type { StepContext } from "../context.ts"
import { readShareSentinel, requireMounted, requireMountPoint, shareDirectory } from "../open.ts"
import { lookAtDirectories, makeDirectories, type WantedDirectory } from "./directories.ts"
import { isInFstab, mountTarget, refuseHidden, writeFstab } from "./fstab.ts"

const nothingConfigured = "no share is configured"
const nfsPort = 2049
const answerTimeoutMs = 5_000

/** The NFS server answers; else says what is in the way. It can't be mended from here: its check is right or throws. */
export function shareIsReachable(
	{ environment: { share } }: StepContext,
	{ port = nfsPort, timeoutMs = answerTimeoutMs } = {},
): Step {
	return {
		id: "share-reachable",
		title: "the share's server answers",
		check: async (): Promise<Finding> => {
			if (share === undefined) return satisfied(nothingConfigured)
			if (share.filesystem === "directory") return satisfied("stand-in: a directory")
			if (share.mount.filesystem === "bind") return satisfied("stand-in: a bind mount, not NFS")
			const { host } = share.mount.source
			const code = await connectTo(host.replaceAll(/[[\]]/g, ""), port, timeoutMs)
			if (code === undefined) return satisfied(`${host} answers on port ${port}`)
			throw unreachable(host, port, code)
		},
		apply: async () => {},
	}
}

/** @returns undefined when somebody answers, else the error's code; `ETIMEDOUT` also when nothing comes at all */
function connectTo(host: string, port: number, timeoutMs: number): Promise<string | undefined> {
	return new Promise((resolve) => {
		const socket = connect({ host, port })
		const end = (code: string | undefined) => {
			socket.destroy()
			clearTimeout(timer)
			resolve(code)
		}
		// Not the socket's own, which knows nothing of looking up the name.
		const timer = setTimeout(() => end("ETIMEDOUT"), timeoutMs)
		socket.once("connect", () => end(undefined))
		socket.once("error", (error) => end(codeOf(error) ?? error.message))
	})
}

function unreachable(host: string, port: number, code: string): OperatorError {
	const known: Readonly<Record<string, readonly [because: string, hint: string]>> = {
		ECONNREFUSED: [
			"refuses the connection",
			"share the volume with this instance in the console, or wait for it",
		],
		ENOTFOUND: ["is a name that nobody knows", "compare share.mount in comfyume.yaml with the console"],
		EAI_AGAIN: ["can't be looked up: the name server gives no answer", "cat /etc/resolv.conf"],
	}
	const [because, hint] = known[code] ?? [
		`gives no answer (${code}): there is no way from this machine to it`,
		"ask the provider: machines without a route to the share have needed a support ticket",
	]
	return new OperatorError(`the share's server ${host} ${because} (port ${port})`, {
		exitCode: exitCodes.unreachable,
		hint,
	})
}

/**
 * It is mounted, by fstab, as the mount command of the configuration has it. What is mounted in its place, or lies on
 * the root disk in its place, is refused (8).
 */
export function shareIsMounted(context: StepContext): Step {
	const { host, environment } = context
	const { share } = environment
	return {
		id: "share",
		title: "the share is mounted",
		requires: ["share-reachable"],
		check: async (): Promise<Finding> => {
			if (share === undefined) return satisfied(nothingConfigured)
			if (share.filesystem === "directory") {
				await requireMountPoint(host, share)
				return satisfied("stand-in: a directory")
			}
			const says = share.filesystem === "bind" ? "; stand-in: a bind mount, not NFS" : ""
			const mounted = await isMounted(host, share)
			if (host.standIn) {
				if (!mounted) await requireMountPoint(host, share)
				return satisfied(`a directory stands in for the machine: it has no fstab${says}`)
			}
			if (!mounted) await refuseHidden(host, share.mountPoint, "the share")
			const lasting = await isInFstab(host, entryOf(share.mount))
			if (mounted && lasting) return satisfied(`mounted at ${share.mountPoint}, also after a reboot${says}`)
			return needed(
				[
					...(mounted ? [] : [`nothing is mounted at ${share.mountPoint}`]),
					...(lasting ? [] : ["/etc/fstab doesn't have it as configured"]),
				].join("; ") + says,
			)
		},
		apply: async (report) => {
			if (share === undefined || share.filesystem === "directory") return
			await writeFstab(context, entryOf(share.mount), report.note)
			if (await isMounted(host, share)) return
			await refuseHidden(host, share.mountPoint, "the share")
			await mountTarget(
				host,
				share.mountPoint,
				"share the volume with this instance in the console, and compare share.mount: its path changes with a rename",
			)
		},
	}
}

/** @throws {OperatorError} (8) when something else is mounted there */
async function isMounted(host: LocalHost, share: ShareConfiguration): Promise<boolean> {
	try {
		await requireMountPoint(host, share)
		return true
	} catch (error) {
		if (error instanceof OperatorError && error.exitCode === exitCodes.unreachable) return false
		throw error
	}
}

// In a dry run an earlier step would mount it; else applying says that it isn't.
const notYet = ({ mountPoint }: ShareConfiguration) => needed(`the share is not mounted at ${mountPoint} yet`)

/** `nofail`: a machine whose share is away must boot all the same, or nobody can look. Pure. */
export function entryOf(mount: MountCommand): FstabEntry {
	const bind = mount.filesystem === "bind"
	const options = [...(bind ? ["bind"] : []), ...mount.options, "nofail", "_netdev"]
	return {
		source: mount.filesystem === "bind" ? mount.source.path : `${mount.source.host}:${mount.source.path}`,
		target: mount.target,
		type: bind ? "none" : mount.filesystem,
		options: [...new Set(options)],
		dump: 0,
		pass: 0,
	}
}

/** The file ENVIRONMENT in its root names this environment. It is written where nobody else's snapshots lie. */
export function shareIsOurs({ host, environment, spoken }: StepContext): Step {
	const { share, name } = environment
	return {
		id: "share-sentinel",
		title: `the share is one of ${name}`,
		requires: ["share"],
		check: async (): Promise<Finding> => {
			if (share === undefined) return satisfied(nothingConfigured)
			if (!(await isMounted(host, share))) return notYet(share)
			const [mountPoint] = shareDirectory(host, share)
			const named = await readShareSentinel(share, mountPoint)
			if (named !== undefined) return satisfied(`${sentinelName} names ${named.join(" and ")}`)
			await refuseOthers(share, mountPoint, spoken)
			return needed(`${join(mountPoint, sentinelName)} is missing`)
		},
		apply: async () => {
			if (share === undefined) return
			await requireMountPoint(host, share)
			const [mountPoint] = shareDirectory(host, share)
			await refuseOthers(share, mountPoint, spoken)
			await writeSentinel(mountPoint, name)
		},
	}
}

async function refuseOthers(share: ShareConfiguration, mountPoint: string, spoken: string): Promise<void> {
	const backups = join(mountPoint, share.backups)
	const entries = await readdir(backups, { withFileTypes: true }).catch((error: unknown) => {
		if (codeOf(error) === "ENOENT") return []
		throw systemError(error, `looking into ${backups}`)
	})
	const others = entries
		.filter((entry) => entry.isDirectory() && /^[a-z][a-z0-9-]*$/.test(entry.name))
		.map(({ name }) => name)
		.filter((name) => name !== share.environment)
		.sort()
	if (others.length === 0) return
	const file = quoteForShell(join(mountPoint, sentinelName))
	throw new OperatorError(
		`the share at ${mountPoint} holds snapshots of ${others.join(" and ")}, and nothing says that it may serve ${share.environment} too`,
		{
			exitCode: exitCodes.refusedByGuard,
			hint: `echo '${[...others, share.environment].join(" ")}' >${file}   # if it is theirs together; then again with ${spoken}`,
		},
	)
}

/** As a whole or not at all, and never over one that came in the meantime: the other machine's word counts. */
async function writeSentinel(mountPoint: string, environment: string): Promise<void> {
	const final = join(mountPoint, sentinelName)
	const partial = join(mountPoint, `.${sentinelName}.${environment}.partial`)
	try {
		await rm(partial, { force: true })
		const file = await open(partial, "wx", 0o644)
		try {
			await file.chmod(0o644)
			await file.writeFile(renderSentinel(environment))
			await file.sync()
		} finally {
			await file.close()
		}
		await link(partial, final).catch((error: unknown) => {
			if (codeOf(error) !== "EEXIST") throw error
		})
		await rm(partial, { force: true })
		await syncPath(mountPoint)
	} catch (error) {
		await rm(partial, { force: true })
		throw systemError(error, `writing ${final}`)
	}
}

/** What must be on it for models, backups and outputs; ComfyUI's user may write where outputs arrive. */
export function shareDirectories({ host, environment }: StepContext): Step {
	const { share } = environment
	const wantedOn = (found: ShareConfiguration): WantedDirectory[] => {
		const [mountPoint] = shareDirectory(host, found)
		const { shareOutputs } = stackOf(environment).paths
		const outputs = shareOutputs.startsWith(`${found.mountPoint}/`)
			? join(mountPoint, shareOutputs.slice(found.mountPoint.length))
			: undefined
		return [
			{ path: join(mountPoint, found.models), mode: 0o755, written: false },
			{ path: join(mountPoint, found.backups), mode: 0o755, written: false },
			// The sticky bit: who may write there can't take away what is another's.
			...(outputs === undefined ? [] : [{ path: outputs, mode: 0o1777, written: true }]),
		]
	}
	return {
		id: "share-directories",
		title: "the share's directories",
		requires: ["share-sentinel"],
		check: async (): Promise<Finding> => {
			if (share === undefined) return satisfied(nothingConfigured)
			if (!(await isMounted(host, share))) return notYet(share)
			await requireMounted(host, share)
			const wanted = wantedOn(share)
			const problems = await lookAtDirectories(host, wanted)
			const probed = host.standIn ? "" : ", and uid 1000 may write where it has to"
			return problems.length === 0
				? satisfied(`${wanted.length} directories${probed}`)
				: needed(problems.join("; "))
		},
		apply: async () => {
			if (share === undefined) return
			await requireMounted(host, share)
			await makeDirectories(wantedOn(share), shareDirectory(host, share)[0], !host.standIn)
		},
	}
}
