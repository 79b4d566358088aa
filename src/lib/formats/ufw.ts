// What ufw says of itself: `ufw show added` (its rules, as the commands that made them) and `ufw status verbose` (what is
// in force).

/** A rule as the words behind `ufw`: `["limit", "22/tcp"]`. */
export type UfwRule = readonly string[]

export type UfwStatus = {
	active: boolean
	/** What becomes of what no rule is about: `deny`, `reject`, `allow`. */
	incoming: string | undefined
	/** IPv4 and IPv6 alike, in the order of the table. */
	rows: readonly { to: string; action: string; from: string }[]
}

/**
 * The rules that are configured, whether the firewall is on or not. Comments are left out: they change nothing.
 * @param text of `ufw show added`
 */
export function readUfwAdded(text: string): UfwRule[] {
	return text.split("\n").flatMap((line) => {
		const [, rule] = /^ufw (.+)$/.exec(line.trim()) ?? []
		if (rule === undefined) return []
		return [
			rule
				.replace(/ comment '.*'$/, "")
				.split(" ")
				.filter((word) => word !== ""),
		]
	})
}

/** @param text of `ufw status verbose` */
export function readUfwStatus(text: string): UfwStatus {
	const lines = text.split("\n")
	const begin = lines.findIndex((line) => /^--\s+-+\s+-+/.test(line))
	const rows = begin === -1 ? [] : lines.slice(begin + 1)
	return {
		active: /^Status: active$/m.test(text),
		incoming: /^Default: (\w+) \(incoming\)/m.exec(text)?.[1],
		rows: rows.flatMap((line) => {
			// Columns are parted by two blanks or more; a cell may hold one, as in `22/tcp (v6)`.
			const [to, action, from] = line
				.trim()
				.replace(/\s+#.*$/, "")
				.split(/\s{2,}/)
			if (to === undefined || action === undefined || from === undefined) return []
			return [{ to, action, from }]
		}),
	}
}
