// The address of Cloudflare R2. A misplaced `.eu` makes R2's own commands fail without a clear message, so the pattern
// is checked before anything is asked.

/** What is wrong, and what to write instead. */
export type EndpointProblem = { message: string; fix: string }

/** `eu`: the bucket was made with the EU jurisdiction and answers only there. `default`: it was made without one. */
export type Jurisdiction = "eu" | "default"

const suffix = ".r2.cloudflarestorage.com"
const accountPattern = /^[0-9a-f]{32}$/

/**
 * Holds an endpoint against R2's pattern, `https://<account id>.eu.r2.cloudflarestorage.com`.
 * @returns every problem; none when the endpoint is right
 */
export function checkR2Endpoint(
	text: string,
	{ jurisdiction = "eu" }: { jurisdiction?: Jurisdiction } = {},
): EndpointProblem[] {
	const account = /(?<![0-9a-f])[0-9a-f]{32}(?![0-9a-f])/i.exec(text)?.[0].toLowerCase() ?? "<account id>"
	const right = `https://${account}${jurisdiction === "eu" ? ".eu" : ""}${suffix}`
	const write = `write ${right}`
	if (!URL.canParse(text) || !/^https?:\/\//i.test(text)) {
		const message = text.includes("://") ? "is not a web address" : "does not begin with https://"
		return [{ message, fix: write }]
	}
	const url = new URL(text)
	const problems: EndpointProblem[] = []
	const add = (message: string, fix = write) => void problems.push({ message, fix })

	if (url.protocol === "http:")
		add("is http: the credentials' signatures and the data would travel in the open")
	if (url.username !== "" || url.password !== "")
		add(
			"holds credentials",
			`${write}; put the keys into secrets.env as R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY`,
		)
	if (url.port !== "") add(`names port ${url.port}; R2 answers on 443 only`)
	if (url.pathname !== "/" || url.search !== "" || url.hash !== "")
		add(
			`goes on after the host name (${url.pathname}${url.search}${url.hash})`,
			`${write}; the bucket's name goes under \`bucket:\``,
		)
	for (const message of hostProblems(url.hostname, jurisdiction)) {
		const bucket = message.startsWith("has the bucket")
		add(message, bucket ? `${write}; the bucket's name goes under \`bucket:\`` : write)
	}
	return problems
}

function hostProblems(host: string, jurisdiction: Jurisdiction): string[] {
	const trailing = /(\.eu)+$/.exec(host)?.[0]
	const base = trailing === undefined ? host : host.slice(0, -trailing.length)
	if (!`.${base}`.endsWith(suffix)) return [`is at ${host}, which is not an R2 endpoint`]

	const problems: string[] = []
	const labels = base
		.slice(0, -suffix.length)
		.split(".")
		.filter((label) => label !== "")
	const account = labels.findIndex((label) => accountPattern.test(label))
	const euAfter =
		account === -1 ? labels.filter((label) => label === "eu").length : countEu(labels.slice(account + 1))
	const euBefore = account === -1 ? 0 : countEu(labels.slice(0, account))
	const others = labels.filter((label, index) => label !== "eu" && index !== account)

	if (account === -1) {
		const shown = others.at(-1)
		problems.push(
			shown === undefined
				? "has no account id in it"
				: `has ${shown} where the account id belongs (32 hexadecimal digits, from R2's overview page)`,
		)
	} else if (others.length > 0) problems.push(`has the bucket's name in the host name (${others.join(".")})`)

	const places = euAfter + euBefore + (trailing === undefined ? 0 : 1)
	if (trailing !== undefined && places === 1)
		problems.push("has .eu at the end; it belongs behind the account id")
	else if (euBefore > 0 && places === 1) problems.push("has eu before the account id; it belongs behind it")
	else if (places > 1) problems.push("has eu more than once")
	else if (places === 0 && jurisdiction === "eu")
		problems.push(
			"has no .eu behind the account id, and a bucket of the EU answers only there " +
				"(a bucket made without a jurisdiction says `jurisdiction: default`)",
		)
	else if (places === 1 && jurisdiction === "default")
		problems.push("has .eu in it, and the bucket says `jurisdiction: default`")
	return problems
}

const countEu = (labels: readonly string[]) => labels.filter((label) => label === "eu").length
