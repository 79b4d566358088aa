// A first comfyume.yaml from what its questions were answered with: only what was answered, each line with its reason.
import { parse, stringify } from "yaml"
import type { Answers } from "./questions.ts"

const header = `# The configuration of comfyume, as \`comfyume init\` wrote it. After a change: comfyume config check
# Secrets never stand here. They come from environment variables, from secrets.env beside this file (chmod 600) or
# /etc/comfyume/secrets.env, or from the kernel keyring. Every key there is: comfyume config schema
version: 1

environments:
`

/** The whole file. Pure; whether the answers are right is for the schema to say. */
export const draftConfiguration = (answers: Answers): string => `${header}${draftEnvironment(answers)}`

/** One environment, indented as it stands below `environments:`. Pure. */
export function draftEnvironment(answers: Answers): string {
	const lines = [
		`  ${scalar(answers.environment ?? "")}:`,
		line(2, "domain", answers.domain),
		...hostLines(answers),
		...shareLines(answers),
		...scratchLines(answers),
		...storeLines(answers),
		"",
		line(2, "git"),
		...repositoryLines("project", answers.projectRemote, answers.projectBranch, answers.projectPath),
		...repositoryLines("scripts", answers.scriptsRemote, answers.scriptsBranch, answers.scriptsPath),
		"",
		line(2, "user", answers.platformUser, "the platform's own user on the host"),
		...stackLines(answers),
		...backupLines(answers),
	]
	return `${lines.join("\n")}\n`
}

function hostLines({ host, role, address, port, user, tailscale }: Answers): string[] {
	return [
		line(2, "hosts"),
		`      - name: ${scalar(host ?? "")} # what reports, locks and records call it; unique over all environments`,
		line(4, "role", role, "app or worker"),
		line(4, "address", address),
		line(4, "port", number(port)),
		line(4, "user", user, "root, or a user with sudo -n"),
		...(given(tailscale) && tailscale !== "join"
			? [
					"        # What `tailscale ip -4` must print; a restore stops when it prints something else.",
					line(4, "tailscaleAddress", tailscale),
				]
			: []),
		...(tailscale === "join"
			? [line(4, "tailnet", "join", "as a new machine, by TAILSCALE_AUTH_KEY or a login")]
			: []),
	]
}

const shareLines = ({ mount }: Answers): string[] =>
	given(mount)
		? [
				"",
				line(2, "share"),
				"      # As the console prints it, whole. The path changes when the volume is renamed or mounted anew.",
				line(3, "mount", mount),
			]
		: []

const scratchLines = ({ scratchDevice, scratchPath }: Answers): string[] =>
	given(scratchDevice)
		? [
				"",
				line(2, "scratch"),
				line(3, "device", scratchDevice, "by device path: cloned disks share their UUIDs"),
				line(3, "path", scratchPath),
			]
		: []

/** The buckets, in the words of the configuration, and which answer names each. */
export const bucketQuestions = {
	cache: "cacheBucket",
	models: "modelsBucket",
	images: "imagesBucket",
	userFiles: "userFilesBucket",
} as const

function storeLines(answers: Answers): string[] {
	const { r2Account, otherJurisdiction = "" } = answers
	if (!given(r2Account)) return []
	const elsewhere = listOf(otherJurisdiction)
	const buckets = Object.entries(bucketQuestions).flatMap(([name, question]) => {
		const bucket = answers[question]
		if (!given(bucket)) return []
		const isElsewhere = elsewhere.includes(name)
		return [
			line(4, name),
			line(5, "bucket", bucket),
			line(5, "endpoint", r2Endpoint(r2Account, isElsewhere)),
			...(isElsewhere
				? [line(5, "jurisdiction", "default", "made without a jurisdiction: no .eu in its endpoint")]
				: []),
		]
	})
	return ["", line(2, "objectStore"), line(3, "provider", "r2"), line(3, "buckets"), ...buckets]
}

/** From an account's id, or from its endpoint as the console prints it; anything else is left for the schema to judge. */
function r2Endpoint(written: string, isElsewhere: boolean): string {
	const account = /^(?:https:\/\/)?([0-9a-f]{32})(?:\.eu\.r2\.cloudflarestorage\.com\/?)?$/.exec(written)?.[1]
	return account === undefined
		? written
		: `https://${account}${isElsewhere ? "" : ".eu"}.r2.cloudflarestorage.com`
}

const repositoryLines = (
	name: string,
	remote: string | undefined,
	branch: string | undefined,
	path: string | undefined,
) => [
	line(3, name),
	line(4, "remote", remote),
	line(4, "branch", branch, "the only branch that this environment may run"),
	line(4, "path", path),
]

function stackLines({ users, nginx, inferenceMode }: Answers): string[] {
	if (users === undefined && nginx === undefined && inferenceMode === undefined) return []
	return [
		"",
		line(2, "stack"),
		...(users === undefined
			? []
			: [line(3, "users", number(users), "a new roster's; afterwards --add and --remove")]),
		...(nginx === undefined ? [] : [line(3, "nginx", nginx, "container, or host: the machine's own nginx")]),
		...(inferenceMode === undefined
			? []
			: [line(3, "inferenceMode", inferenceMode, "local, redis or serverless")]),
	]
}

const backupLines = ({ recipients = "" }: Answers): string[] =>
	given(recipients)
		? [
				"",
				line(2, "backups"),
				"      # Keys and passwords are encrypted for these age public keys; docs/backup.md says where the other half belongs.",
				line(3, "recipients"),
				...listOf(recipients).map((recipient) => `        - ${scalar(recipient)}`),
			]
		: []

const given = (answer: string | undefined): answer is string => answer !== undefined && answer !== ""

/** The parts of a list that was written with commas. */
const listOf = (written: string): string[] =>
	written
		.split(",")
		.map((part) => part.trim())
		.filter((part) => part !== "")

function line(depth: number, key: string, value?: string | number, comment?: string): string {
	const behind = value === undefined ? "" : ` ${scalar(value)}`
	return `${"  ".repeat(depth)}${key}:${behind}${comment === undefined ? "" : ` # ${comment}`}`
}

/** A number where the answer is one; else the text, which the schema then refuses by its own words. */
const number = (answer: string | undefined): string | number =>
	answer !== undefined && /^\d{1,9}$/.test(answer) ? Number(answer) : (answer ?? "")

/** On one line, and quoted wherever a reader of YAML 1.1 or 1.2 would take it for something else than this text. */
function scalar(value: string | number): string {
	const quoted = JSON.stringify(value)
	if (typeof value === "string" && /[\p{Cc}\p{Zl}\p{Zp}]/u.test(value)) return quoted
	const written = stringify(value, { version: "1.1", lineWidth: 0, blockQuote: false }).trimEnd()
	const isSame = (["1.1", "1.2"] as const).every((version) => parse(written, { version }) === value)
	return isSame ? written : quoted
}
