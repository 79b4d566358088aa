// Workflows and what they lack, as an operator reads them; and what is wrong with an extra_model_paths.yaml.
import { printable } from "../../ui/format.ts"
import type { ModelPathsFacts, WorkflowFacts } from "../events.ts"

type Need = WorkflowFacts["models"][number]

/** Lines that are not wrapped: paths and addresses in them are there to be copied. */
export function workflowLines({ path, status, because, models }: WorkflowFacts): string[] {
	const required = models.filter(({ optional }) => !optional)
	const count = required.filter((need) => need.because !== undefined).length
	const all = required.length === 1 ? "1 model" : `${required.length} models`
	const said = because ?? (status === "ok" ? `needs ${all}` : `lacks ${count} of ${all}`)
	const absent = models.filter((need) => need.because !== undefined)
	return [`${status} ${path}: ${said}`, ...absent.flatMap(linesForAbsent)].map(
		(line) => line.slice(0, line.search(/\S/)) + printable(line),
	)
}

/** A model that a workflow doesn't have, why, which node asks for it, and where it can be had. */
function linesForAbsent(need: Need): string[] {
	const { directory, name, nodes, because, optional, url, repository, gated } = need
	const [node] = nodes
	const more = nodes.length > 1 ? ` and ${nodes.length - 1} more` : ""
	const from = url ?? (repository === undefined ? undefined : `https://huggingface.co/${repository}`)
	return [
		`  ${directory === undefined ? "" : `${directory}/`}${name}: ${because}`,
		`    for the node ${node?.id} ${node?.type}${more}${optional ? ", which doesn't run" : ""}`,
		from === undefined ? "    where to get it isn't known" : `    get it from ${from}${gatedSays(gated)}`,
	]
}

const gatedSays = (gated: boolean | undefined) =>
	gated === true ? " (gated: its licence must be accepted, and a token is needed)" : ""

/** As compilers write it: file, line, what. */
export const modelPathsLine = ({ path, line, severity, message }: ModelPathsFacts): string =>
	`${printable(path)}${line === undefined ? "" : `:${line}`} ${severity}: ${printable(message)}`
