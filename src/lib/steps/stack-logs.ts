// The containers' logs, as events: read here or on a host elsewhere, with secrets hidden.
import { StringDecoder } from "node:string_decoder"
import { stackOf } from "../config/environment.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { closest } from "../formats/closest.ts"
import { command } from "../host/command.ts"
import type { LogLine } from "../plan/events.ts"
import { type Plan, type Report, satisfied } from "../plan/step.ts"
import { dockerFailure, dockerOf, projectName } from "../stack/docker.ts"
import type { StepContext } from "./context.ts"

export type LogsOptions = {
	/** Users and services; all when empty. */
	named: readonly string[]
	/** Go on until it is stopped. */
	follow: boolean
	/** As Docker takes it: `10m`, `2026-11-20T06:30:00Z`. */
	since?: string
	/** Lines of each container; all without it. */
	tail?: number
}

/** One step that reads; with `follow` it ends when the run is stopped. */
export async function planLogs(context: StepContext, options: LogsOptions): Promise<Plan> {
	const docker = dockerOf(context.host, stackOf(context.environment).directory)
	const there = [...(await docker.look()).values()].filter(({ project }) => project === projectName)
	const names = there.map(({ name }) => name).sort()
	const wanted =
		options.named.length === 0 ? names : options.named.map((name) => requireContainer(name, names))
	return {
		command: "logs",
		environment: context.environment.name,
		host: context.hostConfiguration.name,
		place: context.place,
		steps: [
			{
				id: "logs",
				title: "Logs",
				async check(report) {
					if (options.follow)
						await Promise.all(wanted.map((name) => read(context, name, options, report.log)))
					else await readInOrder(context, wanted, options, report)
					return satisfied(wanted.length === 1 ? "of 1 container" : `of ${wanted.length} containers`)
				},
				apply: () => Promise.reject(new Error("logs change nothing")),
			},
		],
	}
}

function requireContainer(name: string, there: readonly string[]): string {
	const container = name.startsWith("comfy-") ? name : `comfy-${name}`
	if (there.includes(container)) return container
	const near = closest(container, there)?.replace(/^comfy-/, "")
	throw new OperatorError(`there is no container ${container}`, {
		exitCode: exitCodes.usage,
		hint: near === undefined ? "comfyume status" : `did you mean ${near}?`,
	})
}

/** What several containers said, in the order in which they said it. */
async function readInOrder(
	context: StepContext,
	containers: readonly string[],
	options: LogsOptions,
	report: Report,
): Promise<void> {
	const [only, ...others] = containers
	if (only !== undefined && others.length === 0) return read(context, only, options, report.log)
	const lines: LogLine[] = []
	await Promise.all(containers.map((name) => read(context, name, options, (line) => void lines.push(line))))
	const time = ({ saidAt = "" }: LogLine) => saidAt
	lines.sort((one, other) => (time(one) < time(other) ? -1 : time(one) > time(other) ? 1 : 0))
	for (const line of lines) report.log(line)
}

async function read(
	{ host }: StepContext,
	container: string,
	{ follow, since, tail }: LogsOptions,
	take: (line: LogLine) => void,
): Promise<void> {
	const words = [
		...["logs", "--timestamps"],
		...(follow ? ["--follow"] : []),
		...(since === undefined ? [] : ["--since", since]),
		...(tail === undefined ? [] : ["--tail", String(tail)]),
		container,
	]
	const stream = lines()
	try {
		// Both of its streams in one: what comes on stderr would be kept until the end, and may be gigabytes.
		await host.capture(command("sh", "-c", 'exec docker "$@" 2>&1', "sh", ...words), {
			onStdout: (chunk) => stream.push(chunk),
		})
	} catch (error) {
		throw dockerFailure(error, host.name)
	} finally {
		stream.end()
	}

	function lines() {
		const decoder = new StringDecoder("utf8")
		let rest = ""
		const say = (line: string) => {
			const [, saidAt, text] = /^(\d{4}-\d\d-\d\dT\S+Z) ?(.*)$/s.exec(line) ?? []
			take({ container, text: text ?? line, ...(saidAt === undefined ? {} : { saidAt }) })
		}
		return {
			push(chunk: Buffer) {
				const whole = (rest + decoder.write(chunk)).split("\n")
				rest = whole.pop() ?? ""
				for (const line of whole) say(line)
			},
			end() {
				if (rest !== "") say(rest)
			},
		}
	}
}
