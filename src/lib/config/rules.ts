// What a schema can't say about comfyume.yaml: rules between one key and another, one environment and another. They
// read the file as it is written, so that they also speak when the schema has found something else wrong.
import { parseMountCommand } from "../formats/mount-command.ts"
import { checkR2Endpoint } from "../formats/r2-endpoint.ts"
import { bucketNames } from "./environment.ts"
import type { Path, PlacedProblem } from "./problems.ts"

type Raw = Readonly<Record<string, unknown>>
type Rule = (environment: Raw, name: string) => PlacedProblem[]

/** Every breach of the rules, in a value of any shape. */
export function ruleProblems(value: unknown): PlacedProblem[] {
	const environments = Object.entries(block(block(value).environments))
	const within = environments.flatMap(([name, environment]) =>
		rules.flatMap((rule) =>
			rule(block(environment), name).map((problem) => ({
				...problem,
				path: ["environments", name, ...problem.path],
			})),
		),
	)
	const none: PlacedProblem[] =
		environments.length === 0 && isBlock(block(value).environments)
			? [
					{
						path: ["environments"],
						message: "names no environment",
						fix: "add production:, staging: or testing:",
					},
				]
			: []
	return [...none, ...within, ...twins(environments)]
}

const rules: readonly Rule[] = [
	hostRules,
	shareRules,
	objectStoreRules,
	gitRules,
	notificationRules,
	productionRules,
]

function hostRules(environment: Raw): PlacedProblem[] {
	return list(environment.hosts).flatMap((raw, index): PlacedProblem[] => {
		const host = block(raw)
		const path = ["hosts", index]
		if (host.connection === "directory") {
			return [
				...(host.directory === undefined
					? [
							{
								path,
								message: "has no directory",
								fix: "add `directory:`, the directory that stands in for the machine",
							},
						]
					: []),
				...onlyFor(host, ["address"], path, "connection: ssh"),
				...standIn(environment, [...path, "connection"], "a directory stands in for a machine"),
			]
		}
		return [
			...machineRules(host, path),
			...(host.address === undefined && isBlock(raw)
				? [{ path, message: "has no address", fix: "add `address:`, as in 203.0.113.10" }]
				: []),
			...onlyFor(host, ["directory"], path, "connection: directory"),
		]
	})
}

/** What a restore makes of the machine must not shut out whoever restores it. */
function machineRules(host: Raw, path: Path): PlacedProblem[] {
	const problems: PlacedProblem[] = []
	if (host.tailnet === "identity" && host.tailscaleAddress === undefined)
		problems.push({
			path: [...path, "tailnet"],
			message: "is identity, and nothing says which address that is",
			fix: "add tailscaleAddress:, or write join",
		})
	if (host.tailnet === "none" && host.tailscaleAddress !== undefined)
		problems.push({
			path: [...path, "tailnet"],
			message: "is none, and there is a tailscaleAddress",
			fix: "remove one of them",
		})
	const port = typeof host.port === "number" ? host.port : 22
	const lets = (rule: unknown) => typeof rule === "string" && rule.split(" ")[0] === `${port}/tcp`
	if (Array.isArray(host.firewall) && !host.firewall.some(lets))
		problems.push({
			path: [...path, "firewall"],
			message: `does not let SSH in, which listens on ${port}`,
			fix: `add "${port}/tcp limit"`,
		})
	problems.push(...firewallRules(host, path))
	if (host.workers !== undefined && host.role === "app")
		problems.push({
			path: [...path, "workers"],
			message: "belongs to role: worker",
			fix: "remove it, or write role: worker",
		})
	// Its first worker would be called as the one that runs beside the stack.
	if (host.role === "worker" && host.name === "worker")
		problems.push({
			path: [...path, "name"],
			message: "would make its first worker worker-1, as the one on the app server is called",
			fix: "call it another way, as in gpu-1",
		})
	return problems
}

/** What ufw would refuse in the middle of a restore, or what would be changed back and forth for ever. */
function firewallRules({ firewall }: Raw, path: Path): PlacedProblem[] {
	const places = list(firewall).map((rule) => (typeof rule === "string" ? (rule.split(" ")[0] ?? "") : ""))
	return places.flatMap((place, index): PlacedProblem[] => {
		const at = [...path, "firewall", index]
		if (Number.parseInt(place, 10) > 65_535)
			return [{ path: at, message: `${place} is no port`, fix: "a number up to 65535" }]
		if (place !== "" && places.indexOf(place) < index)
			return [{ path: at, message: `${place} stands there already`, fix: "keep one of the two" }]
		return []
	})
}

function shareRules(environment: Raw): PlacedProblem[] {
	if (!isBlock(environment.share)) return []
	const share = environment.share
	const path = ["share"]
	if (share.filesystem === "directory") {
		return [
			...(share.directory === undefined
				? [
						{
							path,
							message: "has no directory",
							fix: "add `directory:`, the directory that stands in for the share",
						},
					]
				: []),
			...onlyFor(share, ["mount"], path, "filesystem: nfs4"),
			...standIn(environment, [...path, "filesystem"], "a directory stands in for the share"),
		]
	}
	const problems = onlyFor(share, ["directory"], path, "filesystem: directory")
	if (share.filesystem === "bind")
		problems.push(...standIn(environment, [...path, "filesystem"], "a bind mount stands in for NFS"))
	if (share.mount === undefined)
		return [
			...problems,
			{ path, message: "has no mount command", fix: "add `mount:`, copied from the console" },
		]
	if (typeof share.mount !== "string") return problems
	const at = [...path, "mount"]
	const parsed = parseMountCommand(share.mount)
	if ("problem" in parsed) return [...problems, { path: at, ...parsed.problem }]
	if ((parsed.command.filesystem === "bind") !== (share.filesystem === "bind")) {
		const fix =
			share.filesystem === "bind"
				? "write a bind mount, or `filesystem: nfs4`"
				: "write `filesystem: bind`, or the console's command"
		problems.push({
			path: at,
			message: `mounts ${parsed.command.filesystem}, and filesystem says ${share.filesystem ?? "nfs4"}`,
			fix,
		})
	}
	return problems
}

function objectStoreRules(environment: Raw, name: string): PlacedProblem[] {
	const store = block(environment.objectStore)
	const buckets = block(store.buckets)
	const problems: PlacedProblem[] = []
	if (store.provider === "r2" && typeof store.region === "string" && store.region !== "auto")
		problems.push({
			path: ["objectStore", "region"],
			message: `is ${store.region}; R2's only region is auto`,
			fix: "write auto",
		})
	for (const bucketName of bucketNames) {
		const { endpoint, jurisdiction } = block(buckets[bucketName])
		if (typeof endpoint !== "string") continue
		const path = ["objectStore", "buckets", bucketName, "endpoint"]
		if (store.provider === "r2") {
			const found = checkR2Endpoint(endpoint, { jurisdiction: jurisdiction === "default" ? "default" : "eu" })
			problems.push(...found.map((problem) => ({ path, ...problem })))
		} else if (!/^https?:\/\/[^/?#@\s]+\/?$/i.test(endpoint) || !URL.canParse(endpoint))
			problems.push({
				path,
				message: "is not an endpoint",
				fix: "write https://host, without path, bucket or credentials",
			})
		else problems.push(...plainHttp(environment, name, path, endpoint))
	}
	return problems
}

function gitRules(environment: Raw, name: string): PlacedProblem[] {
	return ["project", "scripts"].flatMap((repository): PlacedProblem[] => {
		const { remote } = block(block(environment.git)[repository])
		if (typeof remote !== "string" || remote === "") return []
		const path = ["git", repository, "remote"]
		if (/^[a-z+]+:\/\/[^/]*:[^/]*@/i.test(remote) || /^https?:\/\/[^/]*@/i.test(remote))
			return [
				{
					path,
					message: "holds credentials",
					fix: "remove what stands before @; put the token into secrets.env as GH_TOKEN",
				},
			]
		if (/^https?:\/\//i.test(remote)) {
			if (!URL.canParse(remote))
				return [
					{ path, message: "is not a web address", fix: "as in https://github.com/example/project.git" },
				]
			return plainHttp(environment, name, path, remote)
		}
		if (
			/^ssh:\/\/[^-]/i.test(remote) ||
			/^[A-Za-z0-9_][A-Za-z0-9_.-]*@[A-Za-z0-9][A-Za-z0-9.-]*:[^-]/.test(remote)
		)
			return []
		if (/^(file:\/\/|\.{0,2}\/)/i.test(remote))
			return standIn(environment, path, "a directory stands in for the git server")
		return [{ path, message: "is not a git remote", fix: "as in https://github.com/example/project.git" }]
	})
}

export function notificationRules(environment: Raw, name: string): PlacedProblem[] {
	return ["healthchecks", "ntfy"].flatMap((channel) => {
		const { url } = block(block(environment.notifications)[channel])
		if (typeof url !== "string" || !URL.canParse(url)) return []
		return plainHttp(environment, name, ["notifications", channel, "url"], url)
	})
}

function productionRules(environment: Raw, name: string): PlacedProblem[] {
	if (name !== "production") return []
	return ["allowStandIns", "allowPlainHttp"]
		.filter((key) => environment[key] === true)
		.map((key) => ({ path: [key], message: "is never allowed in production", fix: `remove ${key}` }))
}

// Two machines with one name would share locks and backups; two with one Tailscale identity would fight over it.
function twins(environments: readonly (readonly [string, unknown])[]): PlacedProblem[] {
	const hosts = environments.flatMap(([environment, raw]) =>
		list(block(raw).hosts).map((host, index) => ({ environment, index, host: block(host) })),
	)
	const problems: PlacedProblem[] = []
	const names = new Map<unknown, string>()
	const addresses = new Map<unknown, string>()
	for (const { environment, index, host } of hosts) {
		const path = (key: string) => ["environments", environment, "hosts", index, key]
		const { name, tailscaleAddress } = host
		const before = names.get(name)
		if (typeof name === "string" && before !== undefined)
			problems.push({
				path: path("name"),
				message: `${name} is a host of ${before} already`,
				fix: "give each host a name of its own",
			})
		names.set(name, environment)
		const owner = addresses.get(tailscaleAddress)
		if (typeof tailscaleAddress === "string" && owner !== undefined && owner !== environment)
			problems.push({
				path: path("tailscaleAddress"),
				message: `${tailscaleAddress} belongs to ${owner} already`,
				fix: "give each environment its own identity, or leave tailscaleAddress out",
			})
		addresses.set(tailscaleAddress, environment)
	}
	return problems
}

function plainHttp(environment: Raw, name: string, path: Path, address: string): PlacedProblem[] {
	const url = new URL(address)
	if (url.protocol !== "http:") return []
	const message = `is plain http to ${url.hostname}: anybody on the way reads and changes it`
	if (name === "production") return [{ path, message, fix: "write https://" }]
	if (environment.allowPlainHttp === true || isLoopback(url.hostname)) return []
	return [{ path, message, fix: "write https://, or set allowPlainHttp: true in this environment" }]
}

const isLoopback = (host: string) => host === "localhost" || host === "[::1]" || /^127(\.\d+){3}$/.test(host)

function standIn(environment: Raw, path: Path, what: string): PlacedProblem[] {
	if (environment.allowStandIns === true) return []
	return [
		{ path, message: what, fix: "set allowStandIns: true in this environment if it is a demo or a test" },
	]
}

function onlyFor(holder: Raw, keys: readonly string[], path: Path, where: string): PlacedProblem[] {
	return keys
		.filter((key) => holder[key] !== undefined)
		.map((key) => ({
			path: [...path, key],
			message: `belongs to ${where}`,
			fix: `remove it, or write ${where}`,
		}))
}

const isBlock = (value: unknown): value is Raw =>
	typeof value === "object" && value !== null && !Array.isArray(value)
const block = (value: unknown): Raw => (isBlock(value) ? value : {})
const list = (value: unknown): readonly unknown[] => (Array.isArray(value) ? value : [])
