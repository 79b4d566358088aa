// When a job's files are all there: pure, over what was seen and when. A stable size proves nothing (an MP4 sat at 48
// bytes for two seconds while it was being written), so a file counts when its structure closes and it has been quiet;
// and since nobody says how many files a batch has, the directory must have been quiet too.
import type { MediaFinding } from "../../lib/formats/media.ts"
import type { OutputNode } from "./prefix.ts"

export type SeenFile = {
	name: string
	/** Which of the job's nodes wrote it. */
	node: string
	/** Undefined until it could be read. */
	finding: MediaFinding | undefined
	/** When its size, time or inode was last seen to change, by our clock. */
	changedAtMs: number
	/** It was listed before, and isn't now: a listing that is stale, or a file that was moved. */
	isMissing: boolean
}

export type SettleTimes = {
	/** Pictures, sounds, meshes: what is written at once. */
	pictureMs: number
	/** Films: their sound may be added in a second file. */
	filmMs: number
	/** What has no structure that is known. */
	unknownMs: number
	/** How long a file may look damaged before it is given up: pages of a share can come late. */
	damagedMs: number
}

export const settleTimes: SettleTimes = {
	pictureMs: 3_000,
	filmMs: 10_000,
	unknownMs: 10_000,
	damagedMs: 30_000,
}

export type Settled =
	| { state: "done"; files: readonly SeenFile[]; given: readonly { name: string; because: string }[] }
	| { state: "waiting"; because: string }

const films: ReadonlySet<string> = new Set(["mp4", "webm", "avi"])

/**
 * Decides whether to wait on. A file that stays damaged is given up; where that leaves an expected node with nothing,
 * the job isn't done and its caller's deadline decides.
 * @param changedAtMs when anything in the directory was last seen to change, or could not be seen
 */
export function settle(
	{
		files,
		nodes,
		changedAtMs,
	}: { files: readonly SeenFile[]; nodes: readonly OutputNode[]; changedAtMs: number },
	nowMs: number,
	times: SettleTimes = settleTimes,
): Settled {
	const given: { name: string; because: string }[] = []
	const counted: SeenFile[] = []
	let quietMs = times.pictureMs
	for (const file of files) {
		const verdict = judge(file, nowMs, times)
		if (verdict.state === "waiting") return verdict
		if (verdict.state === "given-up") given.push({ name: file.name, because: verdict.because })
		else counted.push(file)
		quietMs = Math.max(quietMs, neededMs(file, times))
	}
	for (const { node, classType, writes } of nodes) {
		const own = counted.filter((file) => file.node === node)
		const film = own.some(({ finding }) => films.has(finding?.kind ?? "") || finding?.kind === "unknown")
		if (own.length === 0)
			return { state: "waiting", because: `node ${node} (${classType}) has no whole file yet` }
		if (writes === "video" && !film)
			return { state: "waiting", because: `node ${node} (${classType}) has no film yet` }
	}
	const leftMs = changedAtMs + quietMs - nowMs
	if (leftMs > 0) return { state: "waiting", because: `everything is whole; quiet for ${leftMs} ms more` }
	return { state: "done", files: counted, given }
}

type Verdict =
	| { state: "counts" }
	| { state: "waiting"; because: string }
	| { state: "given-up"; because: string }

function judge(file: SeenFile, nowMs: number, times: SettleTimes): Verdict {
	const { name, finding } = file
	const quietMs = nowMs - file.changedAtMs
	if (file.isMissing) return { state: "waiting", because: `${name} was there and isn't listed now` }
	if (finding === undefined) return { state: "waiting", because: `${name} could not be read yet` }
	if (finding.state === "unfinished") return { state: "waiting", because: `${name}: ${finding.because}` }
	if (finding.state === "damaged") {
		const because = `${name} is damaged: ${finding.because}`
		return { state: quietMs < times.damagedMs ? "waiting" : "given-up", because }
	}
	if (quietMs < neededMs(file, times)) return { state: "waiting", because: `${name} has just been written` }
	return { state: "counts" }
}

function neededMs({ finding }: SeenFile, times: SettleTimes): number {
	if (finding === undefined || finding.state === "unknown") return times.unknownMs
	return films.has(finding.kind) ? times.filmMs : times.pictureMs
}
