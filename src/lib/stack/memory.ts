// Whether the machine's memory is enough for what is to run on it.
import { exitCodes, OperatorError } from "../errors.ts"
import { formatBytes } from "../ui/format.ts"
import type { Service } from "./services.ts"

const mebibyte = 1024 * 1024
/** For the system, Docker itself and an operator's shell. */
const systemMegabytes = 512

export type Budget = {
	/** What the services are expected to use while people work. */
	expectedBytes: number
	/** What they may use at most. */
	limitBytes: number
	memoryBytes: number
}

/** Adds up. Pure. */
export function budgetOf(services: readonly Service[], memoryBytes: number): Budget {
	const sum = (of: (service: Service) => number) =>
		services.reduce((total, service) => total + of(service), 0) * mebibyte
	return {
		expectedBytes: sum(({ expectedMegabytes }) => expectedMegabytes),
		limitBytes: sum(({ limits }) => limits.memoryMegabytes),
		memoryBytes,
	}
}

/**
 * What is to be said of the budget; `tight` when the limits together are more than there is.
 * @param services all that are to run, also those that do already
 * @param spoken the options by which this host was named, to be typed again
 * @throws {OperatorError} (8) where it can't work: not even what is expected fits
 */
export function requireMemory(
	services: readonly Service[],
	memoryBytes: number,
	spoken: string,
): { says: string; tight: string | undefined } {
	const budget = budgetOf(services, memoryBytes)
	const room = memoryBytes - systemMegabytes * mebibyte
	const says = `about ${formatBytes(budget.expectedBytes)} of ${formatBytes(memoryBytes)} memory are expected to be used`
	if (budget.expectedBytes > room)
		throw new OperatorError(`${says}: that can't work`, {
			exitCode: exitCodes.refusedByGuard,
			hint: whatFits(services, room, spoken),
		})
	return {
		says,
		tight:
			budget.limitBytes > room
				? `the limits together are ${formatBytes(budget.limitBytes)}: when all use what they may, some are ended`
				: undefined,
	}
}

function whatFits(services: readonly Service[], roomBytes: number, spoken: string): string {
	const fitting: string[] = []
	let usedBytes = 0
	for (const { name, user, expectedMegabytes } of services) {
		usedBytes += expectedMegabytes * mebibyte
		if (user && usedBytes <= roomBytes) fitting.push(name)
	}
	if (fitting.length === 0) return "a machine with more memory"
	// With the door: users alone could not be reached.
	return `a machine with more memory, or a part: comfyume start ${spoken} --only nginx,admin,${fitting.join(",")}`
}
