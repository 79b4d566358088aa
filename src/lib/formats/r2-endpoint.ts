// The address of an R2 bucket's service. A misplaced `.eu` fails without a clear message, so the pattern is checked
// before anything is sent.

export type EndpointProblem = {
	/** What is wrong, as a sentence without a full stop. */
	problem: string
	/** What to write instead. */
	fix: string
}

const accountId = /^[0-9a-f]{32}$/
const service = "r2.cloudflarestorage.com"

/**
 * Everything that is wrong with the endpoint of an R2 bucket under EU jurisdiction; empty when it is right:
 * `https://<account>.eu.r2.cloudflarestorage.com`, where the account is 32 digits of lower-case hex.
 */
export function checkR2Endpoint(text: string): EndpointProblem[] {
	const url = URL.canParse(text.includes("://") ? text : `https://${text}`)
		? new URL(text.includes("://") ? text : `https://${text}`)
		: undefined
	if (url === undefined || text.trim() !== text)
		return [{ problem: `${JSON.stringify(text)} is not an address`, fix: wanted("<account>") }]

	const labels = url.hostname.split(".")
	const account = labels.find((label) => accountId.test(label))
	const fix = wanted(account ?? "<account>")
	const problems: EndpointProblem[] = []
	const report = (problem: string, instead = fix) => problems.push({ problem, fix: instead })

	if (!text.includes("://")) report("it does not begin with https://")
	else if (url.protocol !== "https:")
		report(`it begins with ${url.protocol}//; R2 is reached over https:// only`)
	if (url.username !== "" || url.password !== "")
		report("it holds a user name or a password", `${fix}, and the keys as secrets`)
	if (url.port !== "") report(`it names port ${url.port}`)
	if (
		url.pathname !== "/" ||
		url.search !== "" ||
		url.hash !== "" ||
		text.includes("?") ||
		text.includes("#")
	)
		report(`it has a path (${url.pathname}${url.search}${url.hash}); the bucket is named on its own`)
	else if (text.endsWith("/")) report("it ends with a slash")

	const serviceAt = url.hostname.indexOf(service)
	if (serviceAt <= 0) {
		report(`${url.hostname} is not a host of ${service}`)
		return problems
	}
	const behind = url.hostname.slice(serviceAt + service.length)
	if (behind === ".eu") report("`.eu` stands at the end; it belongs between the account and `r2`")
	else if (behind !== "") report(`"${behind}" stands behind ${service}`)

	const before = url.hostname.slice(0, serviceAt).replace(/\.$/, "").split(".")
	const jurisdictions = before.filter((label) => label === "eu").length
	if (jurisdictions > 1) report("`.eu` stands there twice")
	else if (jurisdictions === 0 && behind !== ".eu") report("`.eu` is missing between the account and `r2`")
	else if (jurisdictions === 1 && before.at(-1) !== "eu")
		report("`.eu` stands before the account, not behind it")

	const others = before.filter((label) => label !== "eu")
	const [first = ""] = others
	if (others.length > 1 && account !== undefined)
		report(
			`the host name holds more than the account: ${others.filter((label) => label !== account).join(", ")}; the bucket is named on its own`,
		)
	else if (account === undefined)
		report(`the account "${first}" is not 32 digits of hex`, `${fix}: dash.cloudflare.com, R2, "Account ID"`)
	return problems
}

const wanted = (account: string) => `https://${account}.eu.${service}`
