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
		// A profile whose name has blanks stands in quotes, which are the shell's: `allow 'Nginx Full'`.
		const words = rule.replace(/ comment '.*'$/, "").match(/'[^']*'|[^' ]+/g) ?? []
		return [words.map((word) => word.replace(/^'(.*)'$/, "$1"))]
	})
}

/** The words behind `ufw` that take a rule away. Of a routed one, `route` comes first: ufw refuses `delete route`. */
export const wordsToDelete = (rule: UfwRule): string[] =>
	rule[0] === "route" ? ["route", "delete", ...rule.slice(1)] : ["delete", ...rule]

/** @param text of `ufw status verbose` */
export function readUfwStatus(text: string): UfwStatus {
	const lines = text.split("\n")
	const begin = lines.findIndex((line) => /^--\s+-+\s+-+/.test(line))
	const rows = begin === -1 ? [] : lines.slice(begin + 1)
	return {
		active: /^Status: active$/m.test(text),
		incoming: /^Default: (\w+) \(incoming\)/m.exec(text)?.[1],
		rows: rows.flatMap((line) => {
			// Columns are padded, and what is longer than its column leaves one blank: the action alone parts them.
			const [, to, action, from] =
				/^(\S.*?)\s+((?:ALLOW|DENY|REJECT|LIMIT)(?: (?:IN|OUT|FWD))?)\s+(.+)$/.exec(
					line.replace(/\s+#.*$/, "").trim(),
				) ?? []
			if (to === undefined || action === undefined || from === undefined) return []
			return [{ to, action, from }]
		}),
	}
}

/** What the kernel does with what comes in, whatever ufw says: it answers from its own files. */
export type InputChain = {
	/** `DROP`, `ACCEPT`; undefined where the text is none of iptables'. */
	policy: string | undefined
	/** The chains that are asked. */
	asks: readonly string[]
	/** Rules of INPUT itself that let something in, past all chains. What comes from the machine itself is left out. */
	accepts: readonly string[]
}

/** @param text of `iptables --list-rules INPUT` */
export const readInputChain = (text: string): InputChain => ({
	policy: /^-P INPUT (\w+)$/m.exec(text)?.[1],
	asks: [...text.matchAll(/^-A INPUT -j (\S+)$/gm)].flatMap(([, chain = ""]) =>
		chain === "ACCEPT" ? [] : [chain],
	),
	accepts: [...text.matchAll(/^-A INPUT (?!-i lo -j )(?:.* )?-j ACCEPT$/gm)].map(([rule]) => rule),
})
