// nginx, wherever the configuration wants it: in its container or on the host. Exactly one of them holds the ports
// afterwards, and answers; if the new one doesn't, the old one serves again.
import { lstat, readlink, stat } from "node:fs/promises"
import { dirname } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import { command } from "../host/command.ts"
import { type Finding, needed, type Report, type Step, satisfied } from "../plan/step.ts"
import { files } from "../stack/description.ts"
import { whyShut } from "../stack/front.ts"
import { isUp } from "../stack/health.ts"
import { describeHolder, holderOf, requirePlaces } from "../stack/host-places.ts"
import { placesOf, type Service } from "../stack/services.ts"
import type { StepContext } from "./context.ts"
import type { OpenStack } from "./stack.ts"
import { type Starting, startContainer } from "./stack-container.ts"

const unit = "nginx.service"
/** Debian's and Ubuntu's nginx read everything in here. */
const siteLink = "/etc/nginx/conf.d/comfyume.conf"
const answerDeadlineMs = 15_000

export const nginxStep = (starting: Starting): Step =>
	starting.open.stack.hasNginx ? nginxInContainer(starting) : nginxOnHost(starting)

function nginxInContainer(starting: Starting): Step {
	const { open } = starting
	const service = open.services.find(({ name }) => name === "nginx") as Service
	const container = startContainer(starting, service)
	const host = hostNginx(starting)
	return {
		id: "nginx",
		title: "nginx in its container",
		async check(report): Promise<Finding> {
			const standing = await host.inTheWay()
			// While the host's holds the ports, the container can't be judged by them.
			if (standing !== undefined) {
				await requirePlaces(placesOf(open.stack, service))
				return needed(`${standing}; the container takes its place`)
			}
			const finding = await container.check(report)
			if (finding.state !== "satisfied") return finding
			const shut = await whyShut(doorOf(starting))
			return shut === undefined ? satisfied("healthy, and answers on the host's ports") : needed(shut)
		},
		apply: async (report) => {
			const before = await host.state()
			const standing = await host.inTheWay()
			// One that serves something else than the workshop has nothing to answer us with, before or after.
			const served = before.active && (await whyShut(doorOf(starting))) === undefined
			if (standing !== undefined) await host.systemctl("disable", "--now")
			try {
				await container.apply(report)
				await answers(starting)
			} catch (error) {
				if (standing === undefined) throw error
				throw await undone(error, report, async () => {
					// It may never have been made: its image can't be fetched.
					const made = (await open.docker.look()).get(service.container)
					if (made !== undefined && isUp(made)) await open.docker.run("stop", service.container)
					await host.restore(before)
					if (served) await answers(starting)
				})
			}
		},
	}
}

function nginxOnHost(starting: Starting): Step {
	const { open } = starting
	const { stack, docker } = open
	const host = hostNginx(starting)
	const name = stack.services.nginx.container
	return {
		id: "nginx",
		title: "nginx of the host",
		async check(): Promise<Finding> {
			await requirePlaces(placesOf(stack, { name: "nginx", user: false }))
			const container = (await docker.look()).get(name)
			if (container !== undefined && isUp(container)) return needed(`${name} runs; ${unit} takes its place`)
			const { active, enabled, linked, loadedLater } = await host.state()
			if (!linked) return needed(`${siteLink} doesn't lead to the site`)
			if (!active) return needed(`${unit} is not running`)
			if (!enabled) return needed(`${unit} would not come back after a reboot`)
			if (!loadedLater) return needed(`${unit} has not read the site since it was written`)
			const shut = (await host.whoHoldsInstead()) ?? (await whyShut(doorOf(starting)))
			return shut === undefined ? satisfied(`${unit} holds the ports and answers`) : needed(shut)
		},
		apply: async (report) => {
			const before = await host.state()
			const container = (await docker.look()).get(name)
			const ran = container !== undefined && isUp(container)
			await host.link()
			try {
				await host.test()
			} catch (error) {
				if (!before.linked) await host.unlink()
				throw error
			}
			try {
				if (ran) await docker.run("stop", name)
				await host.systemctl("enable", "--now")
				// What was running already has read the older site.
				if (before.active) await host.systemctl("reload")
				await answers(starting)
				const other = await host.whoHoldsInstead()
				if (other !== undefined) throw new OperatorError(other)
			} catch (error) {
				if (!ran && !before.active) {
					if (!before.linked) await host.unlink()
					throw error
				}
				throw await undone(error, report, async () => {
					if (!before.linked) await host.unlink()
					await host.restore(before)
					if (!ran) return
					await docker.run("start", name)
					await answers(starting)
				})
			}
		},
	}
}

/** Takes back what was done. Gives what is to be thrown: 9 when the old one serves again, 10 when it doesn't. */
async function undone(error: unknown, report: Report, undo: () => Promise<void>): Promise<OperatorError> {
	const why = messageOf(error)
	const hint = error instanceof OperatorError && error.hint !== undefined ? { hint: error.hint } : {}
	try {
		await undo()
	} catch (failed) {
		report.warn(`taking it back failed too: ${messageOf(failed)}`)
		return new OperatorError(`${why}; and the one before does not serve again: ${messageOf(failed)}`, {
			exitCode: exitCodes.rollbackFailed,
			hint: `systemctl status ${unit}; docker ps; ss -ltnp`,
		})
	}
	return new OperatorError(`${why}; the one before serves again`, { exitCode: exitCodes.rolledBack, ...hint })
}

const doorOf = ({ open, context }: Starting) => ({
	domain: open.stack.domain,
	port: open.stack.configuration.ports.https,
	signal: context.signal,
})

/** Waits for a live answer over TLS. */
async function answers(starting: Starting): Promise<void> {
	const startedAtMs = performance.now()
	for (;;) {
		const shut = await whyShut(doorOf(starting))
		if (shut === undefined) return
		if (performance.now() - startedAtMs > answerDeadlineMs)
			throw new OperatorError(shut, { hint: `ss -ltnp; comfyume logs nginx ${starting.context.spoken}` })
		await pause(200, undefined, { signal: starting.context.signal })
	}
}

/** Whether nginx is to go from the host into its container: then it goes before what it serves from changes. */
export const leavesHost = async (starting: Starting): Promise<boolean> =>
	starting.open.stack.hasNginx && (await hostNginx(starting).inTheWay()) !== undefined

/** How the machine's own nginx is, and whether a container could have the ports. */
export async function hostNginxState(
	context: StepContext,
	open: OpenStack,
): Promise<HostState & { inTheWay: string | undefined }> {
	const own = hostNginx({ context, open })
	const [state, inTheWay] = await Promise.all([own.state(), own.inTheWay()])
	return { ...state, inTheWay }
}

type HostState = { active: boolean; enabled: boolean; linked: boolean; loadedLater: boolean }

/** The machine's own nginx, as a unit of systemd. */
function hostNginx({ context: { host }, open: { stack } }: Pick<Starting, "context" | "open">) {
	const { directory, ports } = stack.configuration
	const site = `${directory}/${files.nginxHostSite}`
	const asks = (verb: string) => host.test(command("systemctl", verb, "--quiet", unit))
	const systemctl = async (...words: readonly string[]) => {
		await host.execute(command("systemctl", ...words, unit))
	}
	const isLinked = async () => {
		const found = await lstat(host.path(siteLink)).catch(() => undefined)
		return found?.isSymbolicLink() === true && (await readlink(host.path(siteLink))) === site
	}
	const unlink = () => host.files.remove(siteLink)
	return {
		systemctl,
		unlink,
		async state(): Promise<HostState> {
			const [active, enabled, linked] = await Promise.all([asks("is-active"), asks("is-enabled"), isLinked()])
			return { active, enabled, linked, loadedLater: active && (await hasLoaded(site)) }
		},
		/** Why the container can't have the ports, now or after a reboot. */
		async inTheWay(): Promise<string | undefined> {
			if (await asks("is-active")) {
				for (const port of [ports.http, ports.https]) {
					const holder = await holderOf(host, port)
					if (holder?.program === "nginx") return `${unit} holds port ${port}`
				}
			}
			if (!(await asks("is-enabled"))) return undefined
			return (await isLinked()) ? `${unit} would take the ports after a reboot` : undefined
		},
		/** Somebody else than nginx on one of the ports. */
		async whoHoldsInstead(): Promise<string | undefined> {
			for (const port of [ports.http, ports.https]) {
				const holder = await holderOf(host, port)
				if (holder === undefined) return `nobody listens on port ${port}`
				if (holder.program !== "nginx") return `port ${port} is held by ${describeHolder(holder)}`
			}
			return undefined
		},
		async link() {
			if (await isLinked()) return
			await host.files.makeDirectory(dirname(siteLink), 0o755)
			await host.execute(
				command("ln", "--symbolic", "--force", "--no-dereference", site, host.path(siteLink)),
			)
		},
		async test() {
			try {
				await host.execute(command("nginx", "-t", "-q"))
			} catch (error) {
				const said = messageOf(error)
				throw new OperatorError(`the host's nginx refuses its configuration; nothing was changed: ${said}`, {
					hint: said.includes("duplicate default server")
						? "rm /etc/nginx/sites-enabled/default   # or whatever else is the default server"
						: "nginx -t",
				})
			}
		},
		/** As it was: running or not, at the next boot too. */
		async restore({ active, enabled }: HostState) {
			await systemctl(enabled ? "enable" : "disable")
			await systemctl(active ? "start" : "stop")
			if (active) await systemctl("reload")
		},
	}

	/** The workers that answer now began after the site was written. */
	async function hasLoaded(file: string): Promise<boolean> {
		const written = await stat(file).catch(() => undefined)
		if (written === undefined) return false
		const { stdout } = await host.capture(command("ps", "-C", "nginx", "-o", "etimes="), {
			allowedExitCodes: [1],
		})
		const ages = stdout.split("\n").flatMap((line) => (line.trim() === "" ? [] : [Number(line)]))
		const sinceSeconds = (Date.now() - written.mtimeMs) / 1000
		// ps cuts off what is less than a second: right after a reload it says 0.
		return ages.length > 0 && Math.min(...ages) <= sinceSeconds
	}
}
