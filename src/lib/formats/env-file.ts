// Files of NAME=value, as shells, systemd and compose read them: only what all of them take alike is taken, and what
// they would read differently is said. Nothing is ever expanded: a `$` is a `$`.

type EnvEntry = { name: string; value: string; line: number }

/** About one line. Never holds a value: these files hold secrets. */
type EnvRemark = { line: number; message: string; fix: string }

export type EnvFile = {
	/** In the order of the file; of a name that stands twice only the last, as shells and compose take it. */
	entries: readonly EnvEntry[]
	/** Lines that could not be read. Their names are not among the entries. */
	problems: readonly EnvRemark[]
	/** Lines that were read, and that another reader may take differently. */
	notes: readonly EnvRemark[]
}

/** Reads the text of an env file. Pure; doesn't throw. */
export function readEnvFile(text: string): EnvFile {
	const entries = new Map<string, EnvEntry>()
	const problems: EnvRemark[] = []
	const notes: EnvRemark[] = []
	if (text.startsWith("\uFEFF"))
		notes.push({
			line: 1,
			message: "a byte order mark stands before the first name",
			fix: "save it as UTF-8 without BOM",
		})
	const lines = text.replace(/^\uFEFF/, "").split("\n")
	if (lines.some((line) => line.endsWith("\r")))
		notes.push({
			line: lines.findIndex((line) => line.endsWith("\r")) + 1,
			message: "lines end the Windows way (CRLF)",
			fix: "sed -i 's/\\r$//' FILE",
		})
	for (const [index, raw] of lines.entries()) {
		const line = index + 1
		const read = readLine(raw.replace(/\r$/, ""))
		if (read === undefined) continue
		if ("problem" in read) {
			problems.push({ line, ...read.problem })
			continue
		}
		const { name, value } = read
		const earlier = entries.get(name)
		if (earlier !== undefined) {
			notes.push({
				line,
				message: `${name} stands on line ${earlier.line} already; this one counts`,
				fix: "keep one",
			})
			entries.delete(name)
		}
		notes.push(...read.notes.map((note) => ({ line, ...note })))
		entries.set(name, { name, value, line })
	}
	return { entries: [...entries.values()], problems, notes }
}

type Remark = Omit<EnvRemark, "line">
type Line = { name: string; value: string; notes: readonly Remark[] } | { problem: Remark }

function readLine(line: string): Line | undefined {
	const text = line.trim()
	if (text === "" || text.startsWith("#")) return undefined
	const assignment = /^(?:export[ \t]+)?([^=\s]*)([ \t]*)=(.*)$/s.exec(text)
	if (assignment === null) return wrong("is not NAME=value", "write NAME=value, or # before a comment")
	const [, name = "", gap = "", rest = ""] = assignment
	if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(name))
		return wrong("does not begin with a name", "names are letters, digits and _, and begin with no digit")
	if (gap !== "") return wrong(`${name} has a space before the =`, `write ${name}=value`)

	const value = readValue(name, rest.trim())
	if ("problem" in value) return value
	if (value.value.includes("\0")) return wrong(`${name} holds a zero byte`, "write it again")
	const dollar: Remark[] =
		value.value.includes("$") && value.quote !== "'"
			? [
					{
						message: `${name} holds a $, which shells and compose expand`,
						fix: "put the value in single quotes",
					},
				]
			: []
	return { name, value: value.value, notes: [...dollar, ...value.notes] }
}

type Value = { value: string; quote: string; notes: readonly Remark[] } | { problem: Remark }

function readValue(name: string, text: string): Value {
	const quote = text[0]
	if (quote === "'" || quote === '"') {
		const closed = quote === "'" ? /^'([^']*)'(.*)$/s.exec(text) : /^"((?:[^"\\]|\\.)*)"(.*)$/s.exec(text)
		if (closed === null)
			return wrong(`${name} opens a quote and does not close it on its line`, "close the quote")
		const [, inside = "", after = ""] = closed
		if (after !== "" && !/^[ \t]+#/.test(after))
			return wrong(`${name} goes on after its closing quote`, "put the whole value between the quotes")
		return { value: quote === "'" ? inside : withoutEscapes(inside), quote, notes: [] }
	}
	const value = text.replace(/(^|[ \t])#.*$/s, "").trimEnd()
	const notes: Remark[] = []
	if (value.includes("#"))
		notes.push({
			message: `${name} holds a #, where some readers cut it off`,
			fix: "put the value in single quotes",
		})
	if (/\s/.test(value))
		notes.push({
			message: `${name} holds a space, where shells end it`,
			fix: "put the value in single quotes",
		})
	if (/["'\\`]/.test(value))
		notes.push({
			message: `${name} holds a quote or a backslash that shells take away`,
			fix: "put the value in single quotes",
		})
	return { value, quote: "", notes }
}

const escapes: Readonly<Record<string, string>> = { n: "\n", r: "\r", t: "\t" }

const withoutEscapes = (text: string) =>
	text.replace(/\\([\s\S])/g, (whole, letter: string) => {
		if (/["\\$`]/.test(letter)) return letter
		return escapes[letter] ?? whole
	})

const wrong = (message: string, fix: string) => ({ problem: { message, fix } })
