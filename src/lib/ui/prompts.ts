// Questions to the operator. They come before any work; without a terminal the answer must be a flag.
import { createInterface } from "node:readline/promises"
import { exitCodes, OperatorError } from "../errors.ts"
import type { Surroundings } from "./surroundings.ts"

type Asking = Pick<Surroundings, "terminal" | "stdin" | "signal">

/** Whether somebody sits there who can answer. */
export const canAsk = ({ terminal, stdin }: Pick<Asking, "terminal" | "stdin">): boolean =>
	terminal.interactive && stdin.isTTY === true

export type Questions = {
	/**
	 * The next line that is typed.
	 * @throws {OperatorError} (2) at the end of input; the signal's reason when it aborts
	 */
	answer(): Promise<string>
	close(): void
}

/** For several questions in a row: lines that were typed ahead, or pasted together, are all answers. */
export function openQuestions({ stdin, signal }: Omit<Asking, "terminal">): Questions {
	const lines = createInterface({ input: stdin, terminal: false })
	const typed = lines[Symbol.asyncIterator]()
	const stop = () => lines.close()
	signal.addEventListener("abort", stop, { once: true })
	return {
		answer: async () => {
			const next = await typed.next()
			if (signal.aborted) throw signal.reason
			if (next.done !== true) return next.value
			throw new OperatorError("the input ended before the last answer: nothing was written", {
				exitCode: exitCodes.usage,
				hint: "answer all of them, or give options: --help",
			})
		},
		close: () => {
			signal.removeEventListener("abort", stop)
			lines.close()
		},
	}
}

/**
 * Lets the operator type the name of what is about to be changed.
 * @param word what has to be typed
 * @param flag what answers the question without a terminal, as in `--yes`
 * @throws {OperatorError} (8) for any other answer, and without a terminal
 */
export async function confirmByTyping(
	{ terminal, stdin, signal }: Asking,
	{ question, word, flag }: { question: string; word: string; flag: string },
): Promise<void> {
	if (!canAsk({ terminal, stdin }))
		throw new OperatorError(`${question} Nobody can be asked here`, {
			exitCode: exitCodes.refusedByGuard,
			hint: `add ${flag}`,
		})
	terminal.talk(`${question}\nType ${word} to go on: `)
	const lines = createInterface({ input: stdin, terminal: false })
	try {
		const answer = await new Promise<string>((resolve, reject) => {
			lines.once("line", resolve)
			lines.once("close", () => resolve(""))
			signal.addEventListener("abort", () => reject(signal.reason), { once: true })
		})
		if (answer.trim() !== word)
			throw new OperatorError("not confirmed: nothing was changed", { exitCode: exitCodes.refusedByGuard })
	} finally {
		lines.close()
	}
}
