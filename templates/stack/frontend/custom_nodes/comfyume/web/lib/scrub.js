// What reports must not carry is taken out here, before they leave the page.

/** Leaves out what a report must not carry: passwords and queries in addresses, tokens. */
export function scrub(text) {
	return (
		text
			.replace(/(\b[a-z][a-z0-9+.-]*:\/\/)[^\s/@]*@/gi, "$1")
			.replace(/(\b[a-z][a-z0-9+.-]*:\/\/[^\s"'`)>?#:]*(?::\d+)?[^\s"'`)>?#:]*)[?#][^\s"'`):>]*/gi, "$1")
			// A quoted value may have been cut off before its end.
			.replace(
				/\b([\w-]*(?:token|secret|password|passwd|api[_-]?key|authorization)[\w-]*["']?\s*[:=]\s*)(?:"[^"]*"?|'[^']*'?|(?:bearer|basic)\s+[^\s"',;}]+|[^\s"',;}]+)/gi,
				"$1[…]",
			)
			.replace(/\b(bearer|basic)\s+\S+/gi, "$1 […]")
			.replace(/\b(?=[\w+/-]*\d)(?=[\w+/-]*[a-z])[\w+-]{32,}={0,2}/gi, "[…]")
	)
}
