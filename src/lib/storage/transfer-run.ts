// The parts of one transfer: what the partial file holds already, what a seed holds, what must come from the source.
import { constants, type FileHandle, open, stat } from "node:fs/promises"
import { basename, dirname } from "node:path"
import { codeOf } from "../errors.ts"
import { requireSpace, spaceFactor } from "../host/disk.ts"
import { fetchOnce, type Lane, retryBudget } from "./block-source.ts"
import type { ByteSource } from "./byte-source.ts"
import { type Control, stop } from "./control.ts"
import { beginPartialState, readPartialState, removePartial } from "./partial-state.ts"
import type { TransferOptions } from "./transfer.ts"
import { JobFailed, type WorkerPool } from "./worker-pool.ts"

/** One attempt at one object; all that its parts need to know. */
export type Run = {
	source: ByteSource
	options: TransferOptions
	blockBytes: number
	count: number
	pool: WorkerPool
	control: Control
	/** Set when the first part fails: all others end. */
	halt: AbortController
	/** Blocks that are in the partial file and proven. */
	done: Set<number>
	onDone: (block: number) => void
	/** The same for one that was written just now. */
	note: (block: number, digest: string) => Promise<void>
	stretch: (block: number) => { first: number; last: number }
}

/**
 * The blocks that are worth looking for in the partial file, with the digests that prove them; and whether what is noted
 * beside it is of this object.
 */
export async function findCandidates({
	source,
	options,
	blockBytes: size,
	count,
	stretch,
}: Run): Promise<{ candidates: ReadonlyMap<number, string>; noted: boolean }> {
	const { partialFile, expected } = options
	const candidates = new Map<number, string>()
	const stats = await stat(partialFile).catch((error: unknown) => {
		if (codeOf(error) === "ENOENT") return undefined
		throw error
	})
	if (stats === undefined) return { candidates, noted: false }
	const state = await readPartialState(partialFile)
	const sameShape = state?.sizeBytes === source.sizeBytes && state.blockBytes === size
	const sameObject = sameShape && state.etag !== undefined && state.etag === source.etag
	for (let block = 0; block < count && stretch(block).last < stats.size; block++) {
		const known = expected.blocks?.[block]
		const noted = sameShape ? state.blocks.get(block) : undefined
		// Without notes all of the file is looked at: it may be somebody's copy.
		if (known !== undefined && (noted !== undefined || !sameShape)) candidates.set(block, known)
		else if (known === undefined && noted !== undefined && sameObject) candidates.set(block, noted)
	}
	return { candidates, noted: sameShape && (expected.blocks !== undefined || sameObject) }
}

/** Opens the partial file at its final size, and makes sure that there is room for it. */
export async function prepare(
	{ source, options, blockBytes: size }: Run,
	{ goesOn, noted }: { goesOn: boolean; noted: boolean },
): Promise<FileHandle> {
	const { partialFile } = options
	const file = await open(partialFile, constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW, 0o644)
	try {
		if (!goesOn) await file.truncate(0)
		const { blocks } = await file.stat()
		const neededBytes = Math.max(0, source.sizeBytes - blocks * 512)
		try {
			await requireSpace(dirname(partialFile), {
				bytes: Math.ceil(neededBytes * spaceFactor),
				shown: dirname(partialFile),
				forWhat: basename(partialFile),
			})
		} catch (error) {
			await file.close()
			if (!goesOn) await removePartial(partialFile)
			throw error
		}
		await file.truncate(source.sizeBytes)
		if (goesOn && noted) return file
		const { sizeBytes, etag } = source
		await beginPartialState(partialFile, { sizeBytes, blockBytes: size, ...(etag !== undefined && { etag }) })
		return file
	} catch (error) {
		await file.close().catch(() => {})
		throw error
	}
}

/** Works through blocks, some at a time; the first failure ends all. */
async function inLanes(
	lanes: number,
	blocks: readonly number[],
	{ halt, control }: Run,
	work: (block: number, lane: number) => Promise<void>,
): Promise<void> {
	const waiting = blocks.values()
	let failure: { error: unknown } | undefined
	const lane = async (number: number) => {
		for (const block of waiting) {
			if (halt.signal.aborted) return
			await work(block, number)
		}
	}
	const halted = new Promise<void>((resolve) => halt.signal.addEventListener("abort", () => resolve()))
	const working = Promise.all(
		Array.from({ length: lanes }, (_, number) =>
			lane(number).catch((error: unknown) => {
				// The first failure is the reason; the others only follow from the stop.
				failure ??= { error }
				stop(control)
				halt.abort()
			}),
		),
	)
	// Nobody waits for a lane that hears nothing from its source: the workers are ended with the transfer.
	await Promise.race([working, halted])
	if (failure !== undefined) throw failure.error
	halt.signal.throwIfAborted()
}

const all = (count: number) => Array.from({ length: count }, (_, block) => block)

export async function proveBlocks(
	run: Run,
	{ candidates, noted }: { candidates: ReadonlyMap<number, string>; noted: boolean },
	threads: number,
): Promise<void> {
	const { pool, control, options, stretch, onDone } = run
	await inLanes(threads, [...candidates.keys()], run, async (block, lane) => {
		const from = { kind: "file" as const, path: options.partialFile }
		const input = { lane, from, ...stretch(block), counted: false, control }
		const { digest } = await pool.run(lane, "block", input)
		if (digest !== candidates.get(block)) return
		if (noted) onDone(block)
		else await run.note(block, digest)
	})
}

export async function takeSeed(run: Run, seedFile: string, threads: number): Promise<void> {
	const { pool, control, options, stretch, done, count } = run
	const { partialFile, expected } = options
	const stats = await stat(seedFile).catch(() => undefined)
	if (stats?.isFile() !== true || expected.blocks === undefined) return
	const missing = all(count).filter((block) => !done.has(block) && stretch(block).last < stats.size)
	await inLanes(threads, missing, run, async (block, lane) => {
		const from = { kind: "file" as const, path: seedFile }
		const input = { lane, from, ...stretch(block), target: partialFile, counted: false, control }
		const taken = await pool.run(lane, "block", input).catch((error: unknown) => {
			if (error instanceof JobFailed && error.target !== true && error.code !== "ABORT_ERR") return undefined
			throw error
		})
		// A block that the seed's disk no longer gives is fetched like one that is wrong.
		if (taken === undefined || taken.digest !== expected.blocks?.[block]) return
		await run.note(block, taken.digest)
	})
}

// Threads wait for the disk, connections for the network; R2 gives each connection a fraction of the line.
const usualLanes: Readonly<Record<ByteSource["access"]["kind"], number>> = { file: 4, http: 8, stream: 4 }

export async function fetchBlocks(run: Run, threads: number): Promise<void> {
	const { source, options, count, done, stretch, halt } = run
	const { partialFile, expected, limitBytesPerSecond } = options
	const missing = all(count).filter((block) => !done.has(block))
	const lanes = Math.min(options.lanes ?? usualLanes[source.access.kind], missing.length)
	const budget = retryBudget(missing.length)
	await inLanes(lanes, missing, run, async (block, lane) => {
		const known = expected.blocks?.[block]
		const range = stretch(block)
		const on: Lane = {
			...run,
			thread: lane % threads,
			lane,
			target: partialFile,
			signal: halt.signal,
			budget,
			...(limitBytesPerSecond !== undefined && { limitBytesPerSecond }),
		}
		const digest = await fetchOnce(on, { block, ...range, ...(known !== undefined && { known }) })
		await run.note(block, digest)
	})
}

/** Hashes the whole behind the blocks as they come, in order, in a thread of its own. */
export function follow(
	pool: WorkerPool,
	thread: number,
	{ partialFile }: TransferOptions,
	size: number,
	{ sizeBytes }: ByteSource,
	control: Control,
) {
	let next = 0
	let chain: Promise<unknown> = Promise.resolve()
	return {
		advance(done: ReadonlySet<number>) {
			const first = next
			while (done.has(next)) next++
			if (next === first) return
			const stretch = { first: first * size, last: Math.min(next * size, sizeBytes) - 1 }
			chain = chain.then(() =>
				pool.run(thread, "extend", { hash: 0, path: partialFile, ...stretch, control }),
			)
			chain.catch(() => {})
		},
		async finish() {
			await chain
			return await pool.run(thread, "finish", { hash: 0 })
		},
	}
}
