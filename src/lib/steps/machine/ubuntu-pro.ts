// Ubuntu Pro: security updates for longer, where there is a token for it.
import { z } from "zod"
import { OperatorError } from "../../errors.ts"
import { command, withOptions } from "../../host/command.ts"
import type { LocalHost } from "../../host/local.ts"
import { type Finding, needed, type Step, satisfied } from "../../plan/step.ts"
import { redact, type Secret } from "../../secret.ts"
import type { StepContext } from "../context.ts"

// In memory, and under one name: what a killed run leaves, the next one finds.
const tokenFile = "/run/comfyume-ubuntu-pro.yaml"
const statusSchema = z.object({ attached: z.boolean() })

/** The machine is attached. Without a token, or on another system, nothing is done. */
export function ubuntuProIsAttached({ host }: StepContext, token: Secret | undefined): Step {
	return {
		id: "ubuntu-pro-attached",
		title: "Ubuntu Pro",
		check: async (): Promise<Finding> => {
			if (host.standIn) return satisfied("a directory stands in for the machine: it has no Ubuntu Pro")
			if (!(await host.test(command("sh", "-c", "command -v pro >/dev/null"))))
				return satisfied("there is no `pro` on this machine: it is no Ubuntu")
			if (await host.test(command("test", "-e", tokenFile))) return needed(`a killed run left ${tokenFile}`)
			if (await isAttached(host)) return satisfied("attached")
			return token === undefined
				? satisfied("not attached: there is no UBUNTU_PRO_TOKEN")
				: needed("not attached")
		},
		apply: async () => {
			try {
				if (token === undefined || (await isAttached(host))) return
				// By a file: every user of the machine can read a program's arguments.
				await host.write(tokenFile, `token: ${JSON.stringify(token.reveal())}\n`, { mode: 0o600 })
				await host.execute(
					withOptions(command("pro", "attach", "--attach-config", tokenFile), { timeoutMs: 10 * 60_000 }),
				)
			} catch (error) {
				if (!(error instanceof OperatorError) || token === undefined) throw error
				throw new OperatorError(redact(error.message, [token]), {
					exitCode: error.exitCode,
					hint: "look at the token on https://ubuntu.com/pro/dashboard, and at /var/log/ubuntu-advantage.log",
				})
			} finally {
				await host.files.remove(tokenFile)
			}
		},
	}
}

async function isAttached(host: LocalHost): Promise<boolean> {
	const asked = withOptions(command("pro", "status", "--format", "json"), { timeoutMs: 60_000 })
	const { stdout } = await host.capture(asked)
	try {
		return statusSchema.parse(JSON.parse(stdout)).attached
	} catch (error) {
		throw new OperatorError("`pro status` answers what comfyume doesn't understand", {
			hint: "pro status --format json",
			cause: error,
		})
	}
}
