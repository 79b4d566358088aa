// Checkouts: code comes from its git remote at one commit, never from a copy of a working tree.
import { readdir } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import { type Command, command, withOptions } from "../host/command.ts"
import type { LocalHost } from "../host/local.ts"
import { lastLines } from "../host/local.ts"
import type { Secret } from "../secret.ts"

export type Checkout = {
	/** Absolute path on the host. */
	path: string
	/** Without credentials. */
	remote: string
	branch: string
	/** Who owns it. git runs as this user: root running git in somebody's tree would run that somebody's hooks. */
	user: string
}

export type CheckoutState =
	| { state: "absent" }
	| { state: "occupied"; because: string }
	| {
			state: "present"
			commit: string
			remote: string
			branch: string
			/** Tracked files that differ from the commit, as `git status --short` prints them. */
			changes: readonly string[]
			/** True when a branch of the remote is known to contain the commit. */
			pushed: boolean
	  }

const accessTimeoutMs = 20_000

/** Reads what stands at a checkout's path. Doesn't touch the network. */
export async function readCheckout(host: LocalHost, checkout: Checkout): Promise<CheckoutState> {
	const { path } = checkout
	if (!(await host.test(command("test", "-e", host.path(path))))) return { state: "absent" }
	if (!(await host.test(command("test", "-e", host.path(`${path}/.git`))))) {
		const { stdout } = await host.capture(command("ls", "-A", host.path(path)))
		return stdout.trim() === ""
			? { state: "absent" }
			: { state: "occupied", because: `${path} is no git checkout` }
	}
	const ask = async (...args: string[]) =>
		(
			await host.capture(await asOwner(host, checkout, gitCommand(host, checkout, args)), {
				allowedExitCodes: [1, 2, 128],
			})
		).stdout.trim()
	const commit = await ask("rev-parse", "--verify", "HEAD")
	if (!/^[0-9a-f]{40}$/.test(commit))
		return { state: "occupied", because: `${path} has no commit checked out` }
	const status = await ask("status", "--short", "--untracked-files=no")
	return {
		state: "present",
		commit,
		remote: await ask("remote", "get-url", "origin"),
		branch: await ask("branch", "--show-current"),
		changes: status === "" ? [] : status.split("\n"),
		pushed: (await ask("for-each-ref", "--contains", commit, "refs/remotes/origin")) !== "",
	}
}

/**
 * Asks the remote whether it would serve us, before git does: its answers name what is wrong where git's don't.
 * Redirects aren't followed, since the token would go along.
 * @throws {OperatorError} (6) for a token that is expired, or that may not read this repository; (4) without a network
 */
export async function checkAccess(
	checkout: Checkout,
	token: Secret | undefined,
	signal: AbortSignal,
): Promise<void> {
	if (!/^https?:/.test(checkout.remote)) return
	const url = `${checkout.remote.replace(/\/+$/, "")}/info/refs?service=git-upload-pack`
	const credentials = token === undefined ? undefined : `x-access-token:${token.reveal()}`
	let response: Response
	try {
		response = await fetch(url, {
			redirect: "manual",
			signal: AbortSignal.any([signal, AbortSignal.timeout(accessTimeoutMs)]),
			headers:
				credentials === undefined
					? {}
					: { authorization: `Basic ${Buffer.from(credentials).toString("base64")}` },
		})
	} catch (error) {
		if (signal.aborted) throw error
		const cause = error instanceof Error && error.cause !== undefined ? error.cause : error
		throw new OperatorError(`${checkout.remote} can't be reached: ${messageOf(cause)}`, {
			exitCode: exitCodes.unreachable,
			hint: `git ls-remote ${checkout.remote}`,
			cause: error,
		})
	}
	await response.body?.cancel()
	if (response.ok) return
	throw accessError(checkout, token, response.status)
}

function accessError({ remote }: Checkout, token: Secret | undefined, status: number): OperatorError {
	const refused = (message: string, hint: string) =>
		new OperatorError(message, { exitCode: exitCodes.refusedCredentials, hint })
	if (token === undefined && (status === 401 || status === 403 || status === 404))
		return refused(
			`${remote} asks for a token, and there is no GH_TOKEN`,
			"put GH_TOKEN=… into /etc/comfyume/secrets.env (mode 0600), or export it",
		)
	if (status === 401)
		return refused(
			`${remote} doesn't take the token: GH_TOKEN is expired, revoked or mistyped`,
			"make a new token with read access to the repository's contents, and set GH_TOKEN",
		)
	if (status === 403)
		return refused(
			`${remote} knows the token and refuses it: it lacks the scope, or the organisation hasn't authorised it`,
			"give the token read access to the repository's contents (and authorise it for the organisation's SSO)",
		)
	if (status === 404)
		return refused(
			`${remote} isn't visible to the token: no such repository, or the token may not read this private one`,
			"check the remote in comfyume.yaml; then give the token access to this repository",
		)
	if (status >= 300 && status < 400)
		return new OperatorError(
			`${remote} has moved: it answers with a redirect, which is not followed with a token`,
			{
				hint: "write the repository's new address into comfyume.yaml",
				exitCode: exitCodes.usage,
			},
		)
	return new OperatorError(`${remote} answers with HTTP status ${status}`, {
		exitCode: exitCodes.unreachable,
		hint: "try again in a few minutes",
	})
}

/**
 * Puts a checkout at one commit: cloned beside its place and renamed when it is absent, fetched and moved forward when
 * it is there. The caller has made sure that no work is lost by it.
 * @param commit 40 digits; the tip of the branch without it
 * @param scratch a name for the clone until it is whole, unique to this run
 */
export async function placeCheckout(
	host: LocalHost,
	checkout: Checkout,
	commit: string | undefined,
	{ token, scratch }: { token: Secret | undefined; scratch: string },
): Promise<void> {
	const state = await readCheckout(host, checkout)
	const run = async (at: string, ...args: string[]) =>
		host.execute(await asOwner(host, checkout, gitCommand(host, { ...checkout, path: at }, args, token)))
	const partial = `${checkout.path}.${scratch}.partial`
	const at = state.state === "present" ? checkout.path : partial
	if (state.state !== "present") {
		await removeAbandoned(host, checkout)
		await host.execute(
			await asOwner(
				host,
				checkout,
				withCredentials(
					command("git", "clone", "--quiet", "--no-checkout", "--", checkout.remote, host.path(partial)),
					token,
				),
			),
		)
	} else if (commit === undefined || !(await has(host, checkout, commit))) {
		await run(at, "fetch", "--quiet", "origin")
	}
	const target = commit ?? `refs/remotes/origin/${checkout.branch}`
	try {
		await run(at, "checkout", "--quiet", "-B", checkout.branch, target)
	} catch (error) {
		if (state.state !== "present") await host.files.remove(partial)
		throw new OperatorError(
			`${checkout.remote} has no ${commit === undefined ? `branch ${checkout.branch}` : `commit ${commit}`}: ${messageOf(error)}`,
			{ hint: `git ls-remote ${checkout.remote}`, cause: error },
		)
	}
	if (state.state !== "present") await host.files.rename(partial, checkout.path)
}

/** Clones of runs that were killed. Their git may still be writing, so each run clones under a name of its own. */
async function removeAbandoned(host: LocalHost, { path }: Checkout): Promise<void> {
	const names = await readdir(host.path(dirname(path))).catch(() => [])
	for (const name of names)
		if (name.startsWith(`${basename(path)}.`) && name.endsWith(".partial"))
			await host.files.remove(join(dirname(path), name))
}

async function has(host: LocalHost, checkout: Checkout, commit: string): Promise<boolean> {
	const asked = await asOwner(
		host,
		checkout,
		gitCommand(host, checkout, ["cat-file", "-e", `${commit}^{commit}`]),
	)
	return host.test(asked)
}

/** What differs from the commit, for the operator to judge; at most 40 lines. */
export async function changesOf(host: LocalHost, checkout: Checkout): Promise<string> {
	const diff = await asOwner(host, checkout, gitCommand(host, checkout, ["diff", "--stat", "HEAD"]))
	const { stdout, stderr } = await host.capture(diff, { allowedExitCodes: [1, 128] })
	return stdout.split("\n").slice(0, 40).join("\n").trim() || lastLines(stderr)
}

function gitCommand(
	host: LocalHost,
	{ path }: Pick<Checkout, "path">,
	args: readonly string[],
	token?: Secret,
): Command {
	return withCredentials(command("git", "-C", host.path(path), ...args), token)
}

// The helper prints the token from its environment, so that it stands neither on a command line, nor in a URL, nor in
// a file. The empty helper first switches off whatever the machine has configured, which would store it.
function withCredentials(base: Command, token: Secret | undefined): Command {
	const helper =
		'!f() { test "$1" = get && printf "username=x-access-token\\npassword=%s\\n" "$COMFYUME_GIT_TOKEN"; }; f'
	return withOptions(base, {
		environment: {
			GIT_TERMINAL_PROMPT: "0",
			// `git status` would write the index anew; a check changes nothing.
			GIT_OPTIONAL_LOCKS: "0",
			GIT_CONFIG_COUNT: "3",
			GIT_CONFIG_KEY_0: "credential.helper",
			GIT_CONFIG_VALUE_0: "",
			GIT_CONFIG_KEY_1: "credential.helper",
			GIT_CONFIG_VALUE_1: helper,
			GIT_CONFIG_KEY_2: "http.followRedirects",
			GIT_CONFIG_VALUE_2: "false",
		},
		secretEnvironment: token === undefined ? {} : { COMFYUME_GIT_TOKEN: token.reveal() },
	})
}

async function asOwner(host: LocalHost, { user }: Checkout, base: Command): Promise<Command> {
	if (host.standIn || user === "root") return base
	// --preserve-environment is runuser's default without --login; HOME must be the user's own for git's settings.
	const { stdout } = await host.capture(command("getent", "passwd", user), { allowedExitCodes: [2] })
	const home = stdout.trim().split(":")[5]
	if (home === undefined)
		throw new OperatorError(`there is no user ${user} on ${host.name}`, { hint: `adduser ${user}` })
	return withOptions(command("runuser", "--user", user, "--", base.program, ...base.args), {
		environment: { ...base.environment, HOME: home },
		secretEnvironment: base.secretEnvironment ?? {},
	})
}
