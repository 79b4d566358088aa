// Questions to the operator. They come before any work; without a terminal the answer must be a flag.
import { createInterface } from "node:readline/promises"
import { exitCodes, OperatorError } from "../errors.ts"
import type { Surroundings } from "./surroundings.ts"

/**
 * Lets the operator type the name of what is about to be changed.
 * @param word what has to be typed
 * @param flag what answers the question without a terminal, as in `--yes`
 * @throws {OperatorError} (8) for any other answer, and without a terminal
 */
export async function confirmByTyping(
	{ terminal, stdin, signal }: Pick<Surroundings, "terminal" | "stdin" | "signal">,
	{ question, word, flag }: { question: string; word: string; flag: string },
): Promise<void> {
	if (!terminal.interactive || stdin.isTTY !== true)
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
