// The platform's own user on the host: whose home and checkouts come back, and who works on the machine.
import { exitCodes, OperatorError } from "../../errors.ts"
import { command } from "../../host/command.ts"
import type { LocalHost } from "../../host/local.ts"
import { isExecutable } from "../../host/presence.ts"
import { type Finding, needed, type Step, satisfied } from "../../plan/step.ts"
import type { StepContext } from "../context.ts"

/** The user exists. Its home directory comes from its backup; here it only gets the system's own. */
export function platformUser({ host, environment: { user } }: StepContext): Step {
	return {
		id: "user",
		title: `the user ${user} exists`,
		check: async () => {
			// Programs that run here would make it on the machine that the directory lies on.
			if (host.standIn) return satisfied("a directory stands in for the machine: it has no users")
			return (await host.test(command("getent", "passwd", user)))
				? satisfied(`${user} exists`)
				: needed(`there is no user ${user}`)
		},
		apply: async () => {
			// A group of that name that an interrupted run or an image left is taken.
			const group = (await host.test(command("getent", "group", user))) ? ["--gid", user] : []
			await host.execute(command("useradd", "--create-home", "--shell", "/bin/bash", ...group, "--", user))
		},
	}
}

const shell = "/bin/zsh"
const dockerGroup = "docker"
// sudo passes over names with a dot: half-written, it is no rule yet.
const sudoersFile = (user: string) => `/etc/sudoers.d/comfyume-${user}`
const sudoersText = (user: string) => `# Written by comfyume.\n${user} ALL=(ALL) NOPASSWD:ALL\n`

/** The user's shell is zsh, Docker is the user's to command, and sudo asks for no password. */
export function userIsComplete({ host, environment: { user } }: StepContext): Step {
	return {
		id: "user-complete",
		title: `${user} has shell, Docker and sudo`,
		check: async (): Promise<Finding> => {
			if (host.standIn) return satisfied("a directory stands in for the machine: it has no users")
			const wrong = await whatIsWrong(host, user)
			if (wrong.length > 0) return needed(wrong.map(({ because }) => because).join("; "))
			return satisfied(
				`${user} has ${shell}, is in ${(await groupsOf(host, user)).join(", ")}, and sudo works`,
			)
		},
		apply: async () => {
			for (const { mend } of await whatIsWrong(host, user)) await mend()
		},
	}
}

type Wrong = { because: string; mend: () => Promise<unknown> }

async function whatIsWrong(host: LocalHost, user: string): Promise<Wrong[]> {
	const { stdout, exitCode } = await host.capture(command("getent", "passwd", user), {
		allowedExitCodes: [2],
	})
	if (exitCode !== 0) {
		// In a dry run on a fresh machine an earlier step would make it.
		const because = `there is no user ${user} on ${host.name}`
		const mend = () => Promise.reject(new OperatorError(because, { exitCode: exitCodes.incomplete }))
		return [{ because, mend }]
	}
	const [, , id = "", , , home = "", current = ""] = stdout.trim().split(":")
	const hasShell = await isExecutable(host.path(shell))
	const groups = await groupsOf(host, user)
	const hasDocker = await host.test(command("getent", "group", dockerGroup))
	const owner = (
		await host.capture(command("stat", "--format=%u", home), { allowedExitCodes: [1] })
	).stdout.trim()
	return [
		...(current === shell || !hasShell
			? []
			: [
					{
						because: `the shell of ${user} is ${current}`,
						mend: () => host.execute(command("usermod", "--shell", shell, user)),
					},
				]),
		...(hasShell
			? []
			: [
					{
						because: `${shell} is not installed`,
						mend: () =>
							Promise.reject(new OperatorError(`${shell} is not installed`, { hint: "apt-get install zsh" })),
					},
				]),
		...(groups.includes(dockerGroup) || !hasDocker
			? []
			: [
					{
						because: `${user} is not in the group ${dockerGroup}`,
						mend: () => host.execute(command("usermod", "--append", "--groups", dockerGroup, user)),
					},
				]),
		...(owner === id
			? []
			: [
					{
						because: `${home} is ${owner === "" ? "not there" : `user ${owner}'s`}`,
						mend: () => host.execute(command("install", "-d", "-o", user, "-g", user, "-m", "755", home)),
					},
				]),
		...((await maySudo(host, user))
			? []
			: [{ because: `${user} may not use sudo without a password`, mend: () => writeSudoers(host, user) }]),
	]
}

async function groupsOf(host: LocalHost, user: string): Promise<string[]> {
	const { stdout } = await host.capture(command("id", "--name", "--groups", "--zero", user))
	return stdout.split("\0").filter((name) => name !== "")
}

/** Asked of sudo itself: whichever file says so. */
async function maySudo(host: LocalHost, user: string): Promise<boolean> {
	const { stdout, exitCode } = await host.capture(
		command("sudo", "--non-interactive", "--list", "--other-user", user),
		{ allowedExitCodes: [1] },
	)
	return exitCode === 0 && /\(ALL( : ALL)?\) NOPASSWD: ALL/.test(stdout)
}

async function writeSudoers(host: LocalHost, user: string): Promise<void> {
	const file = sudoersFile(user)
	const partial = `${file}.partial`
	await host.files.makeDirectory("/etc/sudoers.d", 0o750)
	await host.write(partial, sudoersText(user), { mode: 0o440 })
	try {
		// One wrong line in there, and nobody may do anything any more.
		await host.capture(command("visudo", "-c", "-q", "-f", partial))
		await host.files.rename(partial, file)
		await host.capture(command("visudo", "-c", "-q"))
	} catch (error) {
		await host.files.remove(partial)
		throw error
	}
}
