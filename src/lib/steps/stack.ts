// The stack as the commands that run it find it: its description, who is in it, and Docker.
import { join } from "node:path"
import { stackOf } from "../config/environment.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { closest } from "../formats/closest.ts"
import { readEnvFile } from "../formats/env-file.ts"
import { Secret } from "../secret.ts"
import { readCredentials, rosterOf } from "../stack/credentials.ts"
import { describeStack, files, type Stack } from "../stack/description.ts"
import { type Docker, dockerOf } from "../stack/docker.ts"
import { envVariables } from "../stack/env-variables.ts"
import type { Roster } from "../stack/roster.ts"
import { composeFilesOf, type Service, servicesOf } from "../stack/services.ts"
import { readIfThere } from "../stack/write.ts"
import type { StepContext } from "./context.ts"

export type OpenStack = {
	stack: Stack
	roster: Roster
	docker: Docker
	/** In the order of a start. */
	services: readonly Service[]
	/** There is somebody or something to start it for: users in the roster, on a GPU host tokens for its workers. */
	rendered: boolean
}

/**
 * Reads who is in the stack, and describes it. Its secrets are hidden from all that is shown afterwards.
 * @throws {OperatorError} (2) when the credentials file can't be read line by line
 */
export async function openStack(
	context: Pick<StepContext, "environment" | "host" | "hostConfiguration">,
	hide: (secrets: Iterable<Secret>) => void,
	{ gpu = false } = {},
): Promise<OpenStack> {
	const configuration = stackOf(context.environment)
	const { directory, adminName } = configuration
	const environmentText = await readIfThere(join(directory, files.environment))
	hide(secretsIn(environmentText))
	if (context.hostConfiguration.role === "worker") return openWorkers(context, environmentText)
	const where = join(directory, files.credentials)
	const credentials = readCredentials(await readIfThere(where), { where, adminName })
	hide(credentials.values())
	const roster = rosterOf(credentials)
	const stack = describeStack(context.environment, roster)
	return {
		stack,
		roster,
		docker: dockerOf(context.host, directory),
		services: servicesOf(stack, { gpu }),
		rendered: roster.length > 0,
	}
}

/** A GPU host's: nobody is in a roster there. */
function openWorkers(
	{ environment, host, hostConfiguration }: Pick<StepContext, "environment" | "host" | "hostConfiguration">,
	environmentText: string,
): OpenStack {
	const stack = describeStack(environment, [], hostConfiguration)
	const set = new Set(
		readEnvFile(environmentText).entries.flatMap(({ name, value }) => (value === "" ? [] : [name])),
	)
	return {
		stack,
		roster: [],
		docker: dockerOf(host, stack.configuration.directory, composeFilesOf(stack)),
		services: servicesOf(stack),
		rendered: stack.workers.every(({ tokenVariable }) => set.has(tokenVariable)),
	}
}

/**
 * Nothing was rendered yet, or the users are lost: there is nothing to start.
 * @throws {OperatorError} (2)
 */
export function requireRendered({ rendered, stack }: OpenStack, spoken: string): void {
	if (rendered) return
	if (stack.role === "worker")
		throw new OperatorError(
			`not every worker has a token in ${stack.configuration.directory}/${files.environment}`,
			{
				exitCode: exitCodes.usage,
				hint: `comfyume generate-users ${spoken} --credentials FILE, with the file from the app server`,
			},
		)
	throw new OperatorError(`nobody is in ${stack.configuration.directory}/${files.credentials}`, {
		exitCode: exitCodes.usage,
		hint: `comfyume generate-users ${spoken}`,
	})
}

const secretName = /PASSWORD|SECRET|TOKEN|_KEY$|CREDENTIALS/

/** The values of an env file that must never be shown, whatever else is wrong with it. */
function secretsIn(text: string): Secret[] {
	return readEnvFile(text)
		.entries.filter(({ name }) => envVariables.get(name)?.secret === true || secretName.test(name))
		.map(({ value }) => new Secret(value))
}

/**
 * The services that were named, in the order of a start.
 * @throws {OperatorError} (2) for a name that is none
 */
export function servicesNamed(services: readonly Service[], named: readonly string[]): Service[] {
	for (const name of named) {
		if (services.some((service) => service.name === name || service.container === name)) continue
		const near = closest(
			name,
			services.map((service) => service.name),
		)
		throw new OperatorError(`${name} is no service of the stack and nobody in the roster`, {
			exitCode: exitCodes.usage,
			hint: near === undefined ? "comfyume status" : `did you mean ${near}?`,
		})
	}
	return services.filter(({ name, container }) => named.includes(name) || named.includes(container))
}
