// Proves that the GPU's side and this side see one volume, with a marker both ways: the server once mounted one share
// and the serverless workers another, and every job ran and no file ever came.
import { codeOf, messageOf } from "../../lib/errors.ts"
import { type Files, FileTrouble } from "./file-pool.ts"
import type { Clock } from "./watch.ts"

/** What the GPU's side can be asked for: vanilla ComfyUI does both (`/view` and `/upload/image`). */
export type FarSide = {
	/** The text of a file below its output directory; undefined when it has none. */
	read(path: { subfolder: string; filename: string }): Promise<string | undefined>
	write(path: { subfolder: string; filename: string }, text: string): Promise<void>
}

/**
 * `reason`: two volumes; our side can't be written; the GPU's side can't be asked, which proves nothing; it answers, and
 * not to us.
 */
export type Preflight =
	| { state: "same-volume" }
	| { state: "failed"; reason: "volume" | "share" | "unreachable" | "refused"; because: string; hint: string }

export const preflightDirectory = "cq/preflight"

/**
 * Writes a marker here and reads it there, then the other way round. Names are new each time: neither side can have
 * remembered that they aren't there. May wake a GPU that sleeps.
 * @param options.deadlineMs for each way, since listings on NFS may lag
 */
export async function preflight(options: {
	files: Files
	shareRoot: string
	far: FarSide
	clock: Clock
	randomId: () => string
	deadlineMs?: number
}): Promise<Preflight> {
	const { files, shareRoot, far, clock, randomId, deadlineMs = 10_000 } = options
	const place = (filename: string) => ({ root: shareRoot, path: `${preflightDirectory}/${filename}` })
	const id = randomId()
	const [ours, theirs] = [`here-${id}.txt`, `there-${id}.txt`]
	try {
		await files.makeShared({ root: shareRoot, path: preflightDirectory })
		await files.write({ ...place(ours), text: id })
	} catch (error) {
		return failed(
			"share",
			`${shareRoot} can't be written: ${messageOf(error)}`,
			codeOf(error) === "EACCES" ? `chmod 1777 ${shareRoot}` : `findmnt --target ${shareRoot}`,
		)
	}
	try {
		const until = clock.nowMs() + deadlineMs
		for (;;) {
			const text = await far.read({ subfolder: preflightDirectory, filename: ours })
			if (text === id) break
			if (clock.nowMs() >= until)
				return failed(
					"volume",
					"the GPU doesn't see what is written here: its output directory is another one",
					sameVolume,
				)
			await clock.wait(500)
		}
		await far.write({ subfolder: preflightDirectory, filename: theirs }, id)
		return await seenHere(options, theirs, id, clock.nowMs() + deadlineMs)
	} catch (error) {
		return failed(
			"unreachable",
			`the GPU's side could not be asked: ${messageOf(error)}`,
			"check SERVERLESS_ENDPOINT and SERVERLESS_API_KEY",
		)
	} finally {
		for (const name of [ours, theirs]) await files.remove(place(name)).catch(() => {})
	}
}

const sameVolume =
	"compare the volume that is mounted here with the deployment's, and its --output-directory with SFS_OUTPUT_DIR"

async function seenHere(
	{ files, shareRoot, clock }: { files: Files; shareRoot: string; clock: Clock },
	name: string,
	text: string,
	untilMs: number,
): Promise<Preflight> {
	const place = { root: shareRoot, path: preflightDirectory }
	for (;;) {
		const names = await files.names(place)
		if (names.includes(name)) {
			try {
				const found = await files.readText({
					root: shareRoot,
					path: `${place.path}/${name}`,
					mostBytes: 1024,
				})
				if (found === text) return { state: "same-volume" }
			} catch (error) {
				if (!(error instanceof FileTrouble)) throw error
			}
		}
		if (clock.nowMs() >= untilMs) return failed("volume", "what the GPU writes isn't seen here", sameVolume)
		await clock.wait(500)
	}
}

function failed(reason: "volume" | "share" | "unreachable", because: string, hint: string): Preflight {
	return { state: "failed", reason, because, hint }
}
