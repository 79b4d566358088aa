// comfyume itself on the host: what a timer's run finds there when nobody is at hand to say --env and --config.
import { lstat, readlink, symlink } from "node:fs/promises"
import { stamp } from "../../artifacts/snapshot.ts"
import { exitCodes, OperatorError } from "../../errors.ts"
import { isExecutable } from "../../host/presence.ts"
import { needed, type Step, satisfied } from "../../plan/step.ts"
import type { StepContext } from "../context.ts"
import { program } from "../timer-files.ts"

const configurationFile = "/etc/comfyume/comfyume.yaml"
const environmentFile = "/etc/comfyume/environment"

/**
 * The host has the configuration that this run has, and knows which environment and which of its hosts it is. Keys that
 * an operator's configuration names lie on the operator's machine, and mean nothing here.
 * @param text of comfyume.yaml
 */
export function configurationIsInstalled(context: StepContext, text: string): Step {
	const { environment, host, hostConfiguration, now } = context
	const own = `${environment.name} ${hostConfiguration.name}\n`
	const isOwn = (said: string | undefined) => {
		const [name, hostName = hostConfiguration.name] = said?.trim().split(/\s+/) ?? []
		return name === environment.name && hostName === hostConfiguration.name
	}
	return {
		id: "configuration",
		title: "the host knows what it is",
		check: async () => {
			const found = (await host.read(configurationFile))?.toString()
			if (found === undefined) return needed(`there is no ${configurationFile}`)
			if (found !== text) return needed(`${configurationFile} is not the one that this run has`)
			const said = (await host.read(environmentFile))?.toString()
			if (!isOwn(said))
				return needed(`${environmentFile} says ${said?.trim() ?? "nothing"}, and not ${own.trim()}`)
			return satisfied(`${configurationFile} is as here, and ${environmentFile} says ${own.trim()}`)
		},
		apply: async (report) => {
			await host.files.makeDirectory("/etc/comfyume", 0o755)
			const before = await host.read(configurationFile)
			if (before !== undefined && before.toString() !== text) {
				const kept = `${configurationFile}.bak-${stamp(now())}`
				await host.write(kept, before, { mode: 0o644 })
				report.note(`the configuration that stood there is kept as ${kept}`)
			}
			await host.write(configurationFile, text, { mode: 0o644 })
			const said = (await host.read(environmentFile))?.toString()
			if (!isOwn(said)) await host.write(environmentFile, own, { mode: 0o644 })
		},
	}
}

// As `host/release.ts` puts it there.
const releasePattern = /^\/opt\/comfyume\/[0-9a-f]{64}$/

/**
 * `comfyume` on the host is the release that runs now. A clone is somebody's work and changes: there, a link that leads
 * to a release stays.
 * @param packageRoot where the running comfyume lies
 */
export function programIsInstalled({ host }: StepContext, packageRoot: string): Step {
	const root = packageRoot.replace(/\/+$/, "")
	const isRelease = releasePattern.test(root)
	const wanted = `${root}/bin/comfyume`
	const leadsTo = async () => {
		const facts = await lstat(host.path(program)).catch(() => undefined)
		if (facts === undefined) return undefined
		return facts.isSymbolicLink() ? await readlink(host.path(program)) : program
	}
	return {
		id: "program",
		title: `${program} is this comfyume`,
		check: async () => {
			const found = await leadsTo()
			if (found === program)
				throw new OperatorError(`${program} is a file, and no link to a release`, {
					exitCode: exitCodes.refusedByGuard,
					hint: `mv ${program} /root/`,
				})
			if (isRelease)
				return found === wanted
					? satisfied(`it leads to ${root}`)
					: needed(found === undefined ? `there is no ${program}` : `it leads to ${found}, another release`)
			if (found !== undefined && (await isExecutable(host.path(found))))
				return satisfied(`it leads to ${found}; this run's is the clone in ${root}`)
			const what =
				found === undefined ? `there is no ${program}` : `${program} leads to ${found}, where nothing is`
			throw new OperatorError(`${what}, and this comfyume is a clone, which timers must not run`, {
				hint: "run it from elsewhere, which puts a release here; or: npm run release, and unpack it below /opt/comfyume",
			})
		},
		apply: async () => {
			const partial = `${program}.partial`
			await host.files.makeDirectory("/usr/local/bin", 0o755)
			await host.files.remove(partial)
			await symlink(wanted, host.path(partial))
			await host.files.rename(partial, program)
		},
	}
}
