// Which endpoint new jobs go to, and whether it may have any: one that writes to another volume, or refuses us, would
// take job after job and give nothing back.
import type { Logger } from "pino"
import type { Preflight } from "../outputs/preflight.ts"

export type EndpointTrust = {
	preflight: "unchecked" | "passed" | "failed"
	/** No job is sent there until a check has passed. */
	isBlocked: boolean
	because: string | null
	hint: string | null
}

const unchecked: EndpointTrust = { preflight: "unchecked", isBlocked: false, because: null, hint: null }
const againMs = 30_000

/** @param check writes and reads a marker both ways; may wake a GPU */
export function watchEndpoints(
	check: (name: string) => Promise<Preflight>,
	{ log, now, onSettled }: { log: Pick<Logger, "info" | "error">; now: () => number; onSettled: () => void },
) {
	const trusts = new Map<string, EndpointTrust>()
	const checkedMs = new Map<string, number>()
	const checking = new Set<string>()

	async function prove(name: string): Promise<void> {
		checking.add(name)
		const before = trusts.get(name)
		try {
			const found = await check(name)
			if (found.state === "same-volume") {
				trusts.set(name, { preflight: "passed", isBlocked: false, because: null, hint: null })
				log.info({ endpoint: name }, "preflight: the endpoint writes where we read")
			} else {
				const { because, hint, reason } = found
				// That nobody answers proves nothing, also not that what was wrong is right now.
				const isBlocked = reason !== "unreachable" || before?.isBlocked === true
				trusts.set(name, { preflight: "failed", isBlocked, because, hint })
				if (because !== before?.because)
					log.error({ endpoint: name, because, hint, isBlocked }, "preflight failed")
			}
		} finally {
			checkedMs.set(name, now())
			checking.delete(name)
			onSettled()
		}
	}

	return {
		of: (name: string): EndpointTrust => trusts.get(name) ?? unchecked,
		/** Whether a job may be sent there now. Checks what is not proven, in the background and not too often. */
		mayStart(name: string): boolean {
			const trust = trusts.get(name)
			const isDue = now() - (checkedMs.get(name) ?? Number.NEGATIVE_INFINITY) >= againMs
			if (trust?.preflight !== "passed" && !checking.has(name) && isDue)
				prove(name).catch((error: unknown) => log.error({ err: error }, "preflight ended badly"))
			// The first check is waited for: it costs less than a job that nobody gets.
			return trust !== undefined && !trust.isBlocked
		},
		/** A job was refused there in a way that the next would be too. */
		distrust(name: string, because: string, hint: string | undefined): void {
			trusts.set(name, { preflight: "failed", isBlocked: true, because, hint: hint ?? null })
			checkedMs.set(name, now())
			log.error(
				{ endpoint: name, because, hint },
				"the endpoint refuses jobs; none are sent until it passes a check",
			)
		},
	}
}
