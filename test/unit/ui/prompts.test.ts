import { PassThrough } from "node:stream"
import { describe, expect, test } from "vitest"
import { confirmByTyping, openQuestions } from "../../../src/lib/ui/prompts.ts"

const question = { question: "This changes app-1 of production.", word: "production", flag: "--yes" }

function terminal({ interactive = true } = {}) {
	const said: string[] = []
	const stdin = Object.assign(new PassThrough(), { isTTY: interactive })
	const controller = new AbortController()
	const asked = confirmByTyping(
		{
			terminal: {
				out: () => {},
				talk: (text) => void said.push(text),
				interactive,
				columns: 80,
				color: false,
			},
			stdin,
			signal: controller.signal,
		},
		question,
	)
	asked.catch(() => {})
	return { asked, said, stdin, controller }
}

describe("what is about to be changed is confirmed", () => {
	test("by typing its name", async () => {
		const { asked, said, stdin } = terminal()
		stdin.write("production\n")
		await expect(asked).resolves.toBeUndefined()
		expect(said.join("")).toMatch(/Type production to go on/)
	})

	test.each(["yes", "", "Production", "staging"])("and by nothing else: %j", async (typed) => {
		const { asked, stdin } = terminal()
		stdin.write(`${typed}\n`)
		await expect(asked).rejects.toMatchObject({ exitCode: 8, message: /nothing was changed/ })
	})

	test("not by the end of input", async () => {
		const { asked, stdin } = terminal()
		stdin.end()
		await expect(asked).rejects.toMatchObject({ exitCode: 8 })
	})

	test("not by Ctrl-C, which ends the question", async () => {
		const { asked, controller } = terminal()
		controller.abort(new Error("stopped by SIGINT"))
		await expect(asked).rejects.toThrow("stopped by SIGINT")
	})

	test("by a flag where nobody can be asked", async () => {
		const { asked } = terminal({ interactive: false })
		await expect(asked).rejects.toMatchObject({ exitCode: 8, hint: "add --yes" })
	})
})

describe("several questions in a row", () => {
	const open = () => {
		const stdin = new PassThrough()
		const controller = new AbortController()
		return { stdin, controller, ...openQuestions({ stdin, signal: controller.signal }) }
	}

	test("are answered line by line, also when the lines come together", async () => {
		const { stdin, answer } = open()
		stdin.write("one\ntwo\n")
		expect([await answer(), await answer()]).toEqual(["one", "two"])
	})

	test("end with the input, and by Ctrl-C", async () => {
		const ended = open()
		ended.stdin.end()
		await expect(ended.answer()).rejects.toMatchObject({ exitCode: 2 })
		const stopped = open()
		const asked = stopped.answer()
		stopped.controller.abort(new Error("stopped by SIGINT"))
		await expect(asked).rejects.toThrow("stopped by SIGINT")
	})
})
