import { expect, test } from "vitest"
import { keyOf, missingKeys, withKeys } from "../../../src/lib/formats/authorized-keys.ts"

const blob = (letter: string) => `AAAAC3NzaC1lZDI1NTE5AAAAI${letter.repeat(43)}`
const [a, b, c] = ["a", "b", "c"].map((letter) => `ssh-ed25519 ${blob(letter)}`) as [string, string, string]

test.each([
	["plain", `${a}`],
	["with a comment", `${a} operator@example.test`],
	["with options", `no-pty,from="203.0.113.0/24" ${a}`],
	["with spaces and quotes in an option", `command="echo \\"a b\\" ssh-ed25519 ${blob("b")}" ${a}`],
	["indented, and with the end of another system", `  ${a}\r`],
])("a line %s holds its key", (_, line) => {
	expect(keyOf(line)).toBe(a)
})

test.each([
	["a comment", `# ${a}`],
	["an empty line", "  "],
	["a type without a key", "ssh-ed25519"],
	["an authority's, which signs others and lets nobody in by itself", `cert-authority ${a}`],
	["one behind words that are no options", `see also ${a}`],
])("%s is no key", (_, line) => {
	expect(keyOf(line)).toBeUndefined()
})

test("only what is missing is put behind what stands there, byte for byte", () => {
	const text = `# who\n\nfrom="203.0.113.1" ${a} x\n${b}`
	expect(missingKeys(text, [`${a} y`, `${b} y`, `${c} y`])).toEqual([`${c} y`])
	const written = withKeys(text, [`${a} y`, `${b} y`, `${c} y `])
	expect(written).toBe(`${text}\n${c} y\n`)
	expect(withKeys(written, [`${c} z`])).toBe(written)
	expect(withKeys("", [`${a} x`])).toBe(`${a} x\n`)
})
