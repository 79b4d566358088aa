// Where models, outputs and inputs lie. The older way led there by links in the checkout; today the paths themselves are
// configured. Both at once is how two containers write to two places.
import { readlink } from "node:fs/promises"
import { join } from "node:path"
import { stackOf } from "../../config/environment.ts"
import { codeOf, systemError } from "../../errors.ts"
import { readEnvFile } from "../../formats/env-file.ts"
import { needed, type Step, satisfied } from "../../plan/step.ts"
import { files } from "../../stack/description.ts"
import type { StepContext } from "../context.ts"

const names = ["models", "outputs", "inputs"] as const
const variables = { models: "MODELS_PATH", outputs: "OUTPUTS_PATH", inputs: "INPUTS_PATH" } as const

/** The links of the older way lead to the configured paths, or there are none; the env files say the same. Only looks. */
export function storagePathsAreDirect({ host, environment }: StepContext): Step {
	const { directory, paths } = stackOf(environment)
	const envFiles = [join(environment.git.project.path, ".env"), join(directory, files.environment)]
	return {
		id: "storage-paths",
		title: "models, outputs and inputs lie in one place each",
		check: async (report) => {
			const wrong: string[] = []
			let links = 0
			for (const name of names) {
				const link = join(environment.git.project.path, "data", name)
				const target = await readlink(host.path(link)).catch((error: unknown) => {
					if (["ENOENT", "ENOTDIR", "EINVAL"].includes(codeOf(error) ?? "")) return undefined
					throw systemError(error, `looking at ${link}`)
				})
				if (target === undefined) continue
				links++
				if (target === paths[name]) report.note(`${link} is a link of the older way, and leads to ${target}`)
				else wrong.push(`${link} leads to ${target}, and the stack uses ${paths[name]}`)
			}
			for (const file of envFiles) {
				const { entries } = readEnvFile((await host.read(file))?.toString() ?? "")
				for (const name of names) {
					const said = entries.find((entry) => entry.name === variables[name])?.value
					if (said !== undefined && said !== "" && said !== paths[name])
						wrong.push(`${variables[name]} in ${file} is ${said}, and the stack uses ${paths[name]}`)
				}
			}
			if (wrong.length > 0)
				return needed(
					wrong.join("; "),
					"make stack.paths in comfyume.yaml and these the same; nothing is moved by itself",
				)
			return satisfied(
				`${names.map((name) => paths[name]).join(", ")}${links === 0 ? "" : "; links of the older way lead there"}`,
			)
		},
		apply: async () => {},
	}
}
