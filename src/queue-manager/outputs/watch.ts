// Watches one attempt's directory: opendir and readdir at each tick, never a question for one name (NFS remembers "not
// there") and never inotify (NFS has none). The cost grows with the jobs in flight, not with what lies on the share.
import { messageOf } from "../../lib/errors.ts"
import { type Files, FileTrouble } from "./file-pool.ts"
import type { Entry, Inspection } from "./operations.ts"
import { nodeOfFile, type OutputPlan } from "./prefix.ts"
import { type SeenFile, type Settled, type SettleTimes, settle } from "./settle.ts"

export type Clock = {
	nowMs(): number
	/** @throws when the signal aborts */
	wait(ms: number, signal?: AbortSignal): Promise<void>
}

export type WatchOptions = {
	files: Files
	/** The root of outputs on the share, as it is mounted here. */
	shareRoot: string
	plan: OutputPlan
	clock: Clock
	times?: SettleTimes
	/** Between looks while something happens; 500. */
	tickMs?: number
	/** Between looks while nothing does (a cold start); 3000. */
	coldTickMs?: number
	/** What the operator should know: the share doesn't answer, a listing is stale, a file is refused. Each once. */
	say?: (event: WatchEvent) => void
}

export type WatchEvent =
	| { event: "share-trouble"; code: string | undefined; because: string }
	| { event: "share-back"; afterMs: number }
	| { event: "stale-listing"; file: string }
	| { event: "refused"; file: string; because: string }
	| { event: "first-file"; file: string }

/** A file with everything that delivery wants to know of it. */
export type WatchedFile = SeenFile & {
	inspection: Inspection | undefined
	inspectedAtMs: number
	facts: Entry
}

export type Watch = {
	/** Looks once; never throws for what the share does. */
	look(): Promise<void>
	/** What the looks so far come to; with a name, of that file alone, whatever else is expected. */
	settled(only?: string): Settled
	/** Why the share can't be read at present. */
	trouble(): string | undefined
	/** How long to wait before the next look. */
	nextTickMs(): number
	files(): readonly WatchedFile[]
	/** Names that will never be delivered, and why. */
	refused(): ReadonlyMap<string, string>
	/** Whether anything of the job has been seen on the share. */
	hasBegun(): boolean
}

const backoff = 1.25
/** A name that isn't listed for so long was moved or removed; before, the listing is taken to be stale. */
const forgetMissingMs = 10_000
/** What isn't whole is looked into again though nothing seems to have changed: attributes are cached on NFS. */
const inspectAgainMs = 2_000

/** Remembers between looks what was seen, and since when. */
export function watchOutputs(options: WatchOptions): Watch {
	const { files, shareRoot, plan, clock, say = () => {} } = options
	const { tickMs = 500, coldTickMs = 3_000 } = options
	const seen = new Map<string, WatchedFile & { missingSinceMs: number | undefined }>()
	const refused = new Map<string, string>()
	let changedAtMs = clock.nowMs()
	let nextMs = tickMs
	let troubleSinceMs: number | undefined
	let troubleSaid: string | undefined

	const refuse = (file: string, because: string) => {
		if (refused.has(file)) return
		refused.set(file, because)
		changedAtMs = clock.nowMs()
		say({ event: "refused", file, because })
	}
	const take = (entry: Entry) => {
		if (refused.has(entry.name) || isTemporary(entry.name)) return
		const owner = nodeOfFile(plan, entry.name)
		if (entry.kind !== "file")
			return refuse(entry.name, `it is a ${kindNames[entry.kind]}, and no regular file`)
		if (entry.links !== 1) return refuse(entry.name, `it has ${entry.links} names and may be another's`)
		if (owner === undefined) return refuse(entry.name, "none of this job's nodes writes files of such a name")
		const nowMs = clock.nowMs()
		const before = seen.get(entry.name)
		if (before === undefined && seen.size === 0) say({ event: "first-file", file: entry.name })
		if (before !== undefined && !hasChanged(before.facts, entry)) {
			if (before.isMissing) changedAtMs = nowMs
			before.isMissing = false
			before.missingSinceMs = undefined
			return
		}
		changedAtMs = nowMs
		seen.set(entry.name, {
			name: entry.name,
			node: owner.node,
			finding: undefined,
			changedAtMs: nowMs,
			isMissing: false,
			missingSinceMs: undefined,
			inspection: undefined,
			inspectedAtMs: Number.NEGATIVE_INFINITY,
			facts: entry,
		})
	}
	const miss = (listed: ReadonlySet<string>) => {
		const nowMs = clock.nowMs()
		for (const [name, file] of seen) {
			if (listed.has(name)) continue
			if (!file.isMissing) say({ event: "stale-listing", file: name })
			file.isMissing = true
			file.missingSinceMs ??= nowMs
			if (nowMs - file.missingSinceMs <= forgetMissingMs) continue
			seen.delete(name)
			changedAtMs = nowMs
		}
	}
	const inspect = async () => {
		for (const file of seen.values()) {
			const nowMs = clock.nowMs()
			const isJudged = file.finding?.state === "whole" || file.finding?.state === "unknown"
			if (file.isMissing || isJudged || nowMs - file.inspectedAtMs < inspectAgainMs) continue
			file.inspectedAtMs = nowMs
			const inspection = await files.inspect({ root: shareRoot, path: `${plan.directory}/${file.name}` })
			file.inspection = inspection
			file.finding = inspection.finding
			// It went on between the listing and the reading: the next look will find it changed.
			if (hasChanged(file.facts, inspection)) file.finding = undefined
		}
	}
	const troubled = (error: unknown) => {
		const nowMs = clock.nowMs()
		// Nothing is known to be quiet while it can't be seen.
		changedAtMs = nowMs
		troubleSaid = messageOf(error)
		if (troubleSinceMs !== undefined) return
		troubleSinceMs = nowMs
		const code = error instanceof FileTrouble ? error.code : undefined
		say({ event: "share-trouble", code, because: troubleSaid })
	}

	return {
		async look() {
			const before = changedAtMs
			try {
				const listing = await files.list({ root: shareRoot, path: plan.directory })
				for (const entry of listing.entries) take(entry)
				const unreadable = listing.unreadable.map(({ name }) => name)
				miss(new Set([...listing.entries.map(({ name }) => name), ...unreadable]))
				await inspect()
				const [first] = listing.unreadable
				if (first !== undefined) throw new FileTrouble(`${first.name}: ${first.code}`, first.code)
				if (troubleSinceMs !== undefined)
					say({ event: "share-back", afterMs: clock.nowMs() - troubleSinceMs })
				troubleSinceMs = undefined
				troubleSaid = undefined
			} catch (error) {
				troubled(error)
			}
			const isQuiet = changedAtMs === before && (seen.size === 0 || troubleSinceMs !== undefined)
			nextMs = isQuiet || troubleSinceMs !== undefined ? Math.min(nextMs * backoff, coldTickMs) : tickMs
		},
		settled(only) {
			const files = [...seen.values()].filter(({ name }) => only === undefined || name === only)
			const nodes = only === undefined ? plan.nodes : []
			return settle({ files, nodes, changedAtMs }, clock.nowMs(), options.times)
		},
		trouble: () => troubleSaid,
		nextTickMs: () => nextMs,
		files: () => [...seen.values()],
		refused: () => refused,
		hasBegun: () => seen.size > 0 || refused.size > 0,
	}
}

const kindNames = { directory: "directory", link: "link", other: "device, socket or pipe" } as const

function hasChanged(one: Facts, other: Facts): boolean {
	return one.sizeBytes !== other.sizeBytes || one.modifiedMs !== other.modifiedMs || one.inode !== other.inode
}

type Facts = { sizeBytes: number; modifiedMs: number; inode: string }

/** What programs write before they rename it; and what NFS leaves of a file that is removed while it is open. */
function isTemporary(name: string): boolean {
	return name.startsWith(".") || /\.(tmp|temp|part|partial)$/i.test(name)
}
