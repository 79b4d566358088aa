// Notices a transfer that has stopped, or that goes so slowly that it might as well have.

export type Watchdog = {
	/** Bytes went through. */
	moved(bytes: number): void
	/** From here on the other side is waited for. */
	resume(): void
	/** From here on it is our own side that takes its time. */
	pause(): void
}

/**
 * Calls `onStall` once when, of `stallMs` spent waiting for the other side, fewer than `leastBytes` came of it. Time in
 * which our own side is busy doesn't count. Starts paused.
 */
export function watchdog({
	stallMs,
	leastBytes,
	onStall,
}: {
	stallMs: number
	leastBytes: number
	onStall: () => void
}): Watchdog {
	let movedBytes = 0
	let waitedMs = 0
	let waitingSince: number | undefined
	let timer: NodeJS.Timeout | undefined
	const pause = () => {
		if (waitingSince === undefined) return
		waitedMs += performance.now() - waitingSince
		waitingSince = undefined
		clearTimeout(timer)
	}
	const resume = () => {
		if (waitingSince !== undefined) return
		waitingSince = performance.now()
		timer = setTimeout(
			() => {
				pause()
				onStall()
			},
			Math.max(0, stallMs - waitedMs),
		)
	}
	return {
		pause,
		resume,
		moved(bytes) {
			movedBytes += bytes
			if (movedBytes < leastBytes) return
			const waiting = waitingSince !== undefined
			pause()
			movedBytes = 0
			waitedMs = 0
			if (waiting) resume()
		},
	}
}
