// Waiting that something can cut short.

export type Bell = { ring(): void; wait(mostMs: number): Promise<void> }

/** A wait that ends early when the bell is rung, or when one of the signals is. What rang while nobody waited counts. */
export function bell(...signals: readonly AbortSignal[]): Bell {
	let rung = false
	let wake: () => void = () => undefined
	const ring = () => {
		rung = true
		wake()
	}
	for (const signal of signals) signal.addEventListener("abort", ring)

	return {
		ring,
		async wait(mostMs) {
			if (!rung && !signals.some(({ aborted }) => aborted)) {
				await new Promise<void>((resolve) => {
					const timer = setTimeout(resolve, mostMs)
					wake = () => {
						clearTimeout(timer)
						resolve()
					}
				})
			}
			rung = false
		},
	}
}
