// The env files of checkout and stack: nobody else reads them, and every reader takes them alike.
import { lstat } from "node:fs/promises"
import { join } from "node:path"
import { stackOf } from "../../config/environment.ts"
import { codeOf, OperatorError, systemError } from "../../errors.ts"
import { command } from "../../host/command.ts"
import type { LocalHost } from "../../host/local.ts"
import { needed, type Step, satisfied } from "../../plan/step.ts"
import { files } from "../../stack/description.ts"
import { lintEnvFile } from "../../stack/env-lint.ts"
import type { StepContext } from "../context.ts"

/** Regular files of mode 0600, and `env check` has nothing against them. Modes are set here; values are for people. */
export function envFilesAreRight({ host, environment, spoken }: StepContext): Step {
	const wanted = [
		{ file: join(environment.git.project.path, ".env"), owner: environment.user, whole: false },
		...(environment.stack === undefined
			? []
			: [{ file: join(stackOf(environment).directory, files.environment), owner: "root", whole: true }]),
	]
	return {
		id: "env-files",
		title: "the env files are right",
		check: async (report) => {
			const there: string[] = []
			const open: string[] = []
			for (const { file, owner, whole } of wanted) {
				const text = (await host.read(file))?.toString()
				if (text === undefined) continue
				there.push(file)
				const wrong = await whyOpen(host, file, owner)
				if (wrong !== undefined) open.push(wrong)
				// The checkout's is the older stack's, of which today's needs not all.
				const findings = lintEnvFile(text).filter(({ kind }) => whole || kind !== "missing")
				for (const { kind, line, message } of findings)
					if (kind === "unknown" || kind === "ambiguous") report.note(`${file}:${line}: ${message}`)
				const [worst, ...more] = findings.filter(({ kind }) => kind !== "unknown" && kind !== "ambiguous")
				if (worst !== undefined)
					throw new OperatorError(
						`${file}${worst.line === 0 ? "" : `:${worst.line}`}: ${worst.message}${more.length === 0 ? "" : ` (and ${more.length} more)`}`,
						{ hint: `comfyume env check ${file} ${spoken}` },
					)
			}
			if (open.length > 0) return needed(open.join("; "))
			return satisfied(
				there.length === 0 ? "there is none" : `${there.join(" and ")}: whole, and nobody else's to read`,
			)
		},
		apply: async () => {
			for (const { file, owner } of wanted) {
				if ((await whyOpen(host, file, owner)) === undefined) continue
				await host.files.setMode(file, 0o600)
				if (!host.standIn)
					await host.execute(command("chown", "--no-dereference", "--", `${owner}:`, host.path(file)))
			}
		},
	}
}

/** @throws {OperatorError} for what is no regular file: nothing is set through a link */
async function whyOpen(host: LocalHost, file: string, owner: string): Promise<string | undefined> {
	try {
		const facts = await lstat(host.path(file))
		if (!facts.isFile()) throw new OperatorError(`${file} is no regular file`, { hint: `ls -l ${file}` })
		const mode = facts.mode & 0o777
		if (mode !== 0o600) return `${file} has mode ${mode.toString(8)}, not 600`
	} catch (error) {
		if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return undefined
		throw systemError(error, `looking at ${file}`)
	}
	if (host.standIn) return undefined
	const { stdout } = await host.capture(command("stat", "--format=%U", "--", file))
	return stdout.trim() === owner ? undefined : `${file} belongs to ${stdout.trim()}, not to ${owner}`
}
