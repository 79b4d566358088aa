// Stacks of the tests: described and rendered with made-up secrets that are the same each time.
import { stackOf } from "../../src/lib/config/environment.ts"
import { Secret } from "../../src/lib/secret.ts"
import { describeStack, type Stack } from "../../src/lib/stack/description.ts"
import { environmentFile, renderEnvironment } from "../../src/lib/stack/env-render.ts"
import { renderFiles, type StackFile } from "../../src/lib/stack/render.ts"
import { testEnvironment } from "./front-door.ts"

type Configuration = ReturnType<typeof stackOf>

/** A stack of so many users. */
export function stackFor(users: number, changes: Partial<Configuration> = {}): Stack {
	const configuration = { ...stackOf(testEnvironment(undefined)), ...changes }
	const roster = Array.from({ length: users }, (_, index) => index + 1)
	return describeStack(testEnvironment(configuration), roster)
}

/** Everything that is rendered for it, without credentials: those are random. */
export function renderedFor(stack: Stack, existing = ""): StackFile[] {
	let made = 0
	const makeSecret = () => `made-up-secret-of-the-tests-${String(++made).padStart(4, "0")}`
	const rendered = renderEnvironment(stack, { existing, makeSecret })
	return renderFiles(stack, {
		credentials: "",
		htpasswd: "",
		environment: environmentFile(stack, rendered),
		proxySecret: new Secret(rendered.proxySecret.reveal()),
		workerTokens: rendered.workerTokens,
	})
}
