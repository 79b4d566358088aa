// The thread's half of the file pool: one operation after the other, each answered by its id.
import type { MessagePort } from "node:worker_threads"
import { codeOf, messageOf } from "../../lib/errors.ts"

export type Request = { id: number; name: string; given: unknown }
export type Answer = { id: number } & (
	| { state: "done"; value: unknown }
	| { state: "failed"; message: string; code: string | undefined }
)

/** Answers requests for the operations that are given, by their names. */
export function serveOperations(
	port: MessagePort,
	served: Readonly<Record<string, (given: never) => Promise<unknown>>>,
): void {
	port.on("message", ({ id, name, given }: Request) => {
		const run = async (): Promise<Answer> => {
			const operation = Object.hasOwn(served, name) ? served[name] : undefined
			if (operation === undefined) throw new Error(`there is no operation ${name}`)
			return { id, state: "done", value: await operation(given as never) }
		}
		run().then(
			(answer) => port.postMessage(answer),
			(error: unknown) =>
				port.postMessage({ id, state: "failed", message: messageOf(error), code: codeOf(error) }),
		)
	})
}
