// What a run of work in other threads shares with the thread that waits for it: when to stop, how far it is, how fast
// it may go. In shared memory, because a thread that hashes reads no messages.

/** Passed along with every job; the memory behind it is shared. */
export type Control = SharedArrayBuffer

const stopFlag = 0
// Of 64 bits each; the first word holds the flag.
const countedBytes = 1
const dueMicroseconds = 2

/** Starts with nothing counted. */
export const newControl = (): Control => new SharedArrayBuffer(24)

/** Ends every job that this was given to, within the time of one chunk. */
export function stop(control: Control): void {
	Atomics.store(new Int32Array(control), stopFlag, 1)
}

export function isStopped(control: Control): boolean {
	return Atomics.load(new Int32Array(control), stopFlag) === 1
}

/** Counts bytes in, or out again when they turned out to be worth nothing. */
export function countBytes(control: Control, bytes: number): void {
	Atomics.add(new BigInt64Array(control), countedBytes, BigInt(bytes))
}

export function bytesCounted(control: Control): number {
	return Number(Atomics.load(new BigInt64Array(control), countedBytes))
}

// Longer than a chunk takes at usual limits, so that the line never runs dry; a pause earns no more than this.
const burstMicroseconds = 200_000

/**
 * Books bytes that have just come or gone against the limit that all threads share.
 * @param nowMs a clock that all threads share, too
 * @returns how long the caller must wait before the next ones, in milliseconds
 */
export function bookBytes(
	control: Control,
	bytes: number,
	limitBytesPerSecond: number,
	nowMs: number,
): number {
	const words = new BigInt64Array(control)
	const now = Math.round(nowMs * 1000)
	const cost = Math.round((bytes / limitBytesPerSecond) * 1e6)
	for (;;) {
		const before = Atomics.load(words, dueMicroseconds)
		const due = Math.max(Number(before), now - burstMicroseconds) + cost
		if (Atomics.compareExchange(words, dueMicroseconds, before, BigInt(due)) === before)
			return Math.max(0, (due - now) / 1000)
	}
}
