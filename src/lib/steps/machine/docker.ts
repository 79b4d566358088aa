// Docker, which the provider's images bring along. It is started, and never installed: the distribution's own package
// would take the place of the provider's.

import { stackOf } from "../../config/environment.ts"
import { OperatorError } from "../../errors.ts"
import { command } from "../../host/command.ts"
import { isDirectory } from "../../host/presence.ts"
import { type Finding, needed, type Step, satisfied } from "../../plan/step.ts"
import { dockerOf } from "../../stack/docker.ts"
import type { StepContext } from "../context.ts"
import { requireEngine } from "../stack-engine.ts"

const unit = "docker.service"

/** The engine answers, is new enough, and starts by itself at the next boot. */
export function dockerIsThere({ host, environment }: StepContext): Step {
	const docker = dockerOf(host, stackOf(environment).directory)
	const systemd = () => isDirectory(host.path("/run/systemd/system"))
	const isOff = async (verb: "is-active" | "is-enabled") =>
		!(await host.test(command("systemctl", verb, "--quiet", unit)))
	return {
		id: "docker",
		title: "Docker",
		check: async (): Promise<Finding> => {
			if (host.standIn && environment.stack === undefined)
				return satisfied("a directory stands in for the machine: it has no stack and needs no Docker")
			const answer = await requireEngine(docker).catch((error: unknown) => error)
			const known = !host.standIn && (await systemd()) && (await host.test(command("systemctl", "cat", unit)))
			if (answer instanceof OperatorError) {
				if (known && (await isOff("is-active"))) return needed(`${unit} is off`)
				throw answer
			}
			if (typeof answer !== "string") throw answer
			if (known && (await isOff("is-enabled")))
				return needed(`${answer}; ${unit} would be off after a reboot`)
			return satisfied(answer)
		},
		apply: async () => {
			await host.execute(command("systemctl", "enable", "--now", unit))
		},
	}
}
