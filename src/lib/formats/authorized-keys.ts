// `authorized_keys`: which keys let somebody in, whatever stands before and behind them.

/** Type and key, as in `ssh-ed25519 AAAA…`: what makes two lines the same key. */
export type KeyIdentity = string

const keyType = /^(sk-)?(ssh-(ed25519|rsa|dss)|ecdsa-sha2-nistp\d+)(@openssh\.com)?$/

/**
 * The key that a line holds; undefined for comments, empty lines and what is no key. Options before it are passed over,
 * except `cert-authority`: such a key signs others and lets nobody in by itself.
 */
export function keyOf(line: string): KeyIdentity | undefined {
	const words = wordsOf(line)
	if (words[0]?.startsWith("#") === true) return undefined
	const at = words.findIndex((word) => keyType.test(word))
	const [type, key] = words.slice(at, at + 2)
	// Options are one word, so a key begins with the first word or the second.
	if (at < 0 || at > 1 || type === undefined || key === undefined) return undefined
	if (at === 1 && /(^|,)cert-authority(,|$)/i.test(words[0] ?? "")) return undefined
	return `${type} ${key}`
}

// Separated by white space, but not within double quotes: command="a b".
function wordsOf(line: string): string[] {
	return line.trim().match(/(?:"(?:\\.|[^"\\])*"|[^\s"])+/g) ?? []
}

/** Those of the lines whose key doesn't stand in the text. */
export function missingKeys(text: string, lines: readonly string[]): string[] {
	const there = new Set(text.split("\n").map(keyOf))
	return lines.filter((line) => !there.has(keyOf(line)))
}

/** The same text with the missing ones behind it. What stands in it stays byte for byte. Pure. */
export function withKeys(text: string, lines: readonly string[]): string {
	const missing = missingKeys(text, lines)
	if (missing.length === 0) return text
	// A last line without its end would swallow the next.
	const between = text === "" || text.endsWith("\n") ? "" : "\n"
	return `${text}${between}${missing.map((line) => `${line.trim()}\n`).join("")}`
}
