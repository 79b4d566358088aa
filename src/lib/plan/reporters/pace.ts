// How fast bytes move, and when they will all have arrived.
import { formatBytes, formatRate, formatSeconds, printable } from "../../ui/format.ts"
import type { Event } from "../events.ts"

type Progress = Pick<Extract<Event, { event: "progress" }>, "doneBytes" | "totalBytes" | "from">

const windowMs = 10_000

/** Follows one step's progress. Ask it once per progress event. */
export type Pace = {
	/** @param progress sizes in bytes
	 * @returns as in `12.0 MiB of 1.25 GiB, 80.2 MiB/s, 15 s left, from share` */
	describe(progress: Progress, atMs: number): string
}

/** Measures over the last ten seconds, so that a new source shows its own speed. */
export function createPace(): Pace {
	let samples: { atMs: number; doneBytes: number; from: string | undefined }[] = []
	return {
		describe({ doneBytes, totalBytes, from }, atMs) {
			const last = samples.at(-1)
			// Another source begins anew; what the one before it managed says nothing.
			if (last !== undefined && (last.from !== from || last.doneBytes > doneBytes)) samples = []
			samples.push({ atMs, doneBytes, from })
			samples = samples.filter((sample) => sample.atMs >= atMs - windowMs)
			const [oldest] = samples
			const elapsedMs = oldest === undefined ? 0 : atMs - oldest.atMs
			const rate =
				oldest === undefined || elapsedMs < 500
					? undefined
					: ((doneBytes - oldest.doneBytes) / elapsedMs) * 1000
			const left =
				rate === undefined || rate <= 0 || totalBytes === undefined
					? undefined
					: (totalBytes - doneBytes) / rate
			return [
				totalBytes === undefined
					? formatBytes(doneBytes)
					: `${formatBytes(doneBytes)} of ${formatBytes(totalBytes)}`,
				...(rate === undefined ? [] : [formatRate(rate)]),
				...(left === undefined || left < 0.5 ? [] : [`${formatSeconds(left)} left`]),
				...(from === undefined ? [] : [`from ${printable(from)}`]),
			].join(", ")
		},
	}
}
