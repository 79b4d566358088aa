// What the compose files are made of: services as every one of ours is, and their text. Compose replaces `$NAME` in every
// value: whatever is meant as it stands has its `$` doubled, here and nowhere else.
import { stringify } from "yaml"
import type { Limits, Mount, Stack } from "./description.ts"

/** A variable of the env file. Compose refuses to start without it. */
type Variable = { variable: string }

export type Value =
	| string
	| number
	| boolean
	| Variable
	| readonly Value[]
	| { readonly [key: string]: Value }

export const generatedMark = "# Written by comfyume generate-users; changes here are lost."

/** Of the env file, handed to the queue manager as they are; empty where they don't apply. */
export const passedToQueueManager = [
	"QUEUE_MODE",
	"ENABLE_PRIORITY",
	"JOB_TIMEOUT",
	"MAX_QUEUE_DEPTH",
	"MAX_USER_DEPTH",
	"SERVERLESS_ACTIVE",
	"SERVERLESS_ENDPOINT",
	"SERVERLESS_ENDPOINT_H200_SPOT",
	"SERVERLESS_ENDPOINT_H200_ON_DEMAND",
	"SERVERLESS_ENDPOINT_B300_SPOT",
	"SERVERLESS_ENDPOINT_B300_ON_DEMAND",
	"SERVERLESS_API_KEY",
	"SERVERLESS_TRANSPORT",
	"SERVERLESS_SLOTS",
	"WORKER_HEARTBEAT_TIMEOUT",
	"SFS_POLL_INTERVAL",
	"SFS_MAX_WAIT",
	"SFS_SETTLE_TIME",
] as const

export function common(container: string, image: string, { memoryMegabytes, cpus }: Limits) {
	return {
		container_name: container,
		image,
		restart: "unless-stopped",
		init: true,
		read_only: true,
		security_opt: ["no-new-privileges:true"],
		cap_drop: ["ALL"],
		mem_limit: `${memoryMegabytes}m`,
		cpus,
		pids_limit: 1024,
		// The tag is how a line's container is known to who collects the files.
		logging: {
			driver: "json-file",
			options: { "max-size": "10m", "max-file": "3", tag: "{{.Name}}" },
		},
	} satisfies Value
}

// The source must be there: Docker would make a directory where a file is missing.
export const bind = ({ from, to, writable }: Mount): Value => ({
	type: "bind",
	source: from,
	target: to,
	read_only: !writable,
	bind: { create_host_path: false },
})

// 127.0.0.1 and not localhost, which may be ::1 where nobody listens.
export const health = (test: readonly string[]): Value => ({
	test: ["CMD", ...test],
	interval: "30s",
	timeout: "10s",
	retries: 3,
	start_period: "120s",
	start_interval: "1s",
})

/** Of a service of ours: its own health page. The images have no curl. */
export const nodeProbe = (url: string) => [
	"node",
	"-e",
	`fetch("${url}").then(async(r)=>process.exit(r.ok&&(await r.json()).status==="healthy"?0:1),()=>process.exit(1))`,
]

export const after = (service: string): { [key: string]: Value } => ({
	[service]: { condition: "service_healthy" },
})
export const inDirectory = ({ configuration }: Stack, file: string) => `${configuration.directory}/${file}`

// Version 1.1, as elsewhere: readers that still take it so would read `yes` and `22:22` as something else.
export const text = (value: Value) =>
	`${generatedMark}\n${stringify(forCompose(value), { version: "1.1", lineWidth: 0, aliasDuplicateObjects: false })}`

const isVariable = (value: object): value is Variable =>
	"variable" in value && typeof value.variable === "string" && Object.keys(value).length === 1

function forCompose(value: Value): unknown {
	if (typeof value === "string") return value.replaceAll("$", "$$$$")
	if (typeof value !== "object") return value
	if (Array.isArray(value)) return value.map(forCompose)
	if (isVariable(value))
		return optional.has(value.variable) ? `\${${value.variable}-}` : required(value.variable)
	// Where there is nothing to publish, there is no `ports: []` to wonder at.
	const entries = Object.entries(value).filter(
		([, inside]) => !(Array.isArray(inside) && inside.length === 0),
	)
	return Object.fromEntries(entries.map(([key, inside]) => [key, forCompose(inside as Value)]))
}

const optional: ReadonlySet<string> = new Set([...passedToQueueManager, "VERDA_EDGE_ID", "VERDA_EDGE_KEY"])
const required = (name: string) => `\${${name}:?is not in .env; comfyume env render writes it}`
