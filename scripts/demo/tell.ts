// How the demo talks: a heading per act, and what a reader should look at.
import { styleText } from "node:util"

const columns = () => Math.min(process.stdout.columns || 80, 80)

/** The heading of one act. */
export function act(number: number, title: string): void {
	console.log(`\n${styleText(["bold", "cyan"], wrap(`${number}. ${title}`))}\n`)
}

/** A paragraph, wrapped to the terminal. */
export function say(text: string): void {
	console.log(wrap(text))
}

/** A command to type, on a line of its own so that it can be copied as a whole. */
export function type(command: string, what: string): void {
	console.log(`\n${wrap(what)}\n  ${styleText("bold", command)}`)
}

function wrap(text: string): string {
	const lines: string[] = []
	let line = ""
	for (const word of text.split(" ")) {
		if (line !== "" && line.length + 1 + word.length > columns()) {
			lines.push(line)
			line = word
		} else line = line === "" ? word : `${line} ${word}`
	}
	return [...lines, line].join("\n")
}
