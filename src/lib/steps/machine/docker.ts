// Docker, which the provider's images bring along. It is started, and never installed: the distribution's own package
// would take the place of the provider's.
import { dirname } from "node:path"
import { stackOf } from "../../config/environment.ts"
import { OperatorError } from "../../errors.ts"
import { command } from "../../host/command.ts"
import { isDirectory } from "../../host/presence.ts"
import { type Finding, needed, type Step, satisfied } from "../../plan/step.ts"
import { dockerOf } from "../../stack/docker.ts"
import type { StepContext } from "../context.ts"
import { requireEngine } from "../stack-engine.ts"

const unit = "docker.service"

/** Written by us alone, beside whatever the provider's image has for the unit. */
const dropIn = `/etc/systemd/system/${unit}.d/comfyume.conf`

/**
 * Docker starts the containers that ran before a boot, and one that starts before its share is mounted finds the root
 * disk in its place. It waits for the mounts to have been tried, and comes up without them where they fail: who repairs
 * the machine needs it.
 * @param places mount points, absolute
 */
export const orderAfter = (places: readonly string[]): string =>
	`# Written by comfyume; changes here are lost.\n[Unit]\nAfter=${places.map(mountUnit).join(" ")}\n`

/** As `systemd-escape --path --suffix=mount` (systemd.unit(5), "String escaping for inclusion in unit names"). */
export const mountUnit = (path: string): string =>
	`${path
		.replace(/^\/+|\/+$/g, "")
		.replace(/[^A-Za-z0-9:_./]|^\./gu, (letter) =>
			[...Buffer.from(letter)].map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join(""),
		)
		.replaceAll(/\/+/g, "-")}.mount`

/** The engine answers, is new enough, and starts by itself at the next boot, when the mounts have been tried. */
export function dockerIsThere({ host, environment }: StepContext): Step {
	const { share, scratch } = environment
	const places = [
		...(share === undefined || share.filesystem === "directory" ? [] : [share.mountPoint]),
		...(scratch === undefined ? [] : [scratch.path]),
	]
	const order = places.length === 0 ? undefined : orderAfter(places)
	const isOrdered = async () => order === undefined || (await host.read(dropIn))?.toString() === order
	const docker = dockerOf(host, stackOf(environment).directory)
	const systemd = () => isDirectory(host.path("/run/systemd/system"))
	// Not `systemctl cat`: that fails where a file of the unit was taken away and systemd doesn't know yet.
	const isLoaded = async () =>
		(await host.capture(command("systemctl", "show", "--property=LoadState", unit))).stdout.trim() ===
		"LoadState=loaded"
	const isOff = async (verb: "is-active" | "is-enabled") =>
		!(await host.test(command("systemctl", verb, "--quiet", unit)))
	return {
		id: "docker",
		title: "Docker",
		check: async (): Promise<Finding> => {
			if (host.standIn && environment.stack === undefined)
				return satisfied("a directory stands in for the machine: it has no stack and needs no Docker")
			const answer = await requireEngine(docker).catch((error: unknown) => error)
			const known = !host.standIn && (await systemd()) && (await isLoaded())
			if (answer instanceof OperatorError) {
				if (known && (await isOff("is-active"))) return needed(`${unit} is off`)
				throw answer
			}
			if (typeof answer !== "string") throw answer
			if (known && (await isOff("is-enabled")))
				return needed(`${answer}; ${unit} would be off after a reboot`)
			if (known && !(await isOrdered()))
				return needed(`${answer}; after a reboot ${unit} would not wait for ${places.join(" and ")}`)
			return satisfied(answer)
		},
		apply: async () => {
			if (order !== undefined && !(await isOrdered())) {
				await host.files.makeDirectory(dirname(dropIn), 0o755)
				await host.write(dropIn, order, { mode: 0o644 })
				await host.execute(command("systemctl", "daemon-reload"))
			}
			await host.execute(command("systemctl", "enable", "--now", unit))
		},
	}
}
