// The platform's own user on the host: whose home and checkouts come back.
import { command } from "../host/command.ts"
import { needed, type Step, satisfied } from "../plan/step.ts"
import type { StepContext } from "./context.ts"

/** The user exists. Its home directory comes from its backup; here it only gets the system's own. */
export function platformUser({ host, environment: { user } }: StepContext): Step {
	return {
		id: "user",
		title: `the user ${user} exists`,
		check: async () =>
			(await host.test(command("getent", "passwd", user)))
				? satisfied(`${user} exists`)
				: needed(`there is no user ${user}`),
		apply: async () => {
			await host.execute(command("useradd", "--create-home", "--shell", "/bin/bash", "--", user))
		},
	}
}
