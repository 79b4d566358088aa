// Checkouts: code comes from its git remote at one commit, never from a copy of a working tree.
import { createHash } from "node:crypto"
import { lstat, readdir, readFile, readlink, stat } from "node:fs/promises"
import { basename, dirname, join } from "node:path"
import { codeOf, exitCodes, messageOf, OperatorError } from "../errors.ts"
import { type Command, command, withOptions } from "../host/command.ts"
import type { LocalHost } from "../host/local.ts"
import { lastLines } from "../host/local.ts"
import { isThere } from "../host/presence.ts"
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
			/** A commit that moving the checkout would lose: here, or on the branch, and on no branch of the remote. */
			unpushed?: string
			/** The commit that a run was moving it to when it was stopped. */
			interrupted?: string
	  }

const accessTimeoutMs = 20_000

// From where to where a checkout is being moved. A run that is killed leaves these two refs, and the next one knows by
// them which half-written files are its own.
const intention = "refs/comfyume"

/** Reads what stands at a checkout's path. Doesn't touch the network. */
export async function readCheckout(host: LocalHost, checkout: Checkout): Promise<CheckoutState> {
	const { path } = checkout
	if (!(await isThere(host.path(path)))) return { state: "absent" }
	if (!(await isThere(host.path(`${path}/.git`)))) {
		const { stdout } = await host.capture(command("ls", "-A", host.path(path)))
		return stdout.trim() === ""
			? { state: "absent" }
			: { state: "occupied", because: `${path} is no git checkout` }
	}
	const ask = async (args: string[], allowedExitCodes: number[] = []) => {
		const asked = await asOwner(host, checkout, gitCommand(host, path, args))
		return (await host.capture(asked, { allowedExitCodes })).stdout.trimEnd()
	}
	const commit = await ask(["rev-parse", "--verify", "HEAD"], [1, 128])
	if (!/^[0-9a-f]{40}$/.test(commit))
		return { state: "occupied", because: `${path} has no commit checked out` }
	const status = await ask(["status", "--short", "--untracked-files=no"])
	const onBranch = await ask(["for-each-ref", "--format=%(objectname)", `refs/heads/${checkout.branch}`])
	const unpushed = await ask([
		"rev-list",
		"--max-count=1",
		commit,
		...onBranch.split("\n").filter((id) => id !== ""),
		"--not",
		"--remotes=origin",
	])
	const noted = await ask(["for-each-ref", "--format=%(refname) %(objectname)", intention])
	const { from, target } = Object.fromEntries(
		noted.split("\n").map((line) => line.slice(intention.length + 1).split(" ")),
	)
	return {
		state: "present",
		commit,
		remote: await ask(["remote", "get-url", "origin"], [2, 128]),
		branch: await ask(["branch", "--show-current"]),
		changes: status === "" ? [] : status.split("\n").map((line) => line.trim()),
		pushed: (await ask(["for-each-ref", "--contains", commit, "refs/remotes/origin"])) !== "",
		...(unpushed === "" ? {} : { unpushed }),
		...(from === commit && target !== undefined ? { interrupted: target } : {}),
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
 * Puts a checkout at one commit. One that is there and comes from this remote is fetched and moved in its place, since
 * it also holds what git doesn't know (data in use). Everything else is cloned beside its place and renamed when it is
 * whole. The caller has made sure that no commits and no changes are lost by it.
 * @param commit 40 digits; the tip of the branch without it
 * @param scratch a name for the clone until it is whole, unique to this run
 * @returns where what stood there is kept, if something else did
 * @throws {OperatorError} (8) when a stopped run is to be finished, and somebody has changed files since
 */
export async function placeCheckout(
	host: LocalHost,
	checkout: Checkout,
	commit: string | undefined,
	{ token, scratch }: { token: Secret | undefined; scratch: string },
): Promise<string | undefined> {
	const state = await readCheckout(host, checkout)
	if (state.state === "present" && state.remote === checkout.remote) {
		await moveInPlace(host, checkout, state, { commit, token })
		return undefined
	}
	await removeAbandoned(host, checkout)
	const partial = `${checkout.path}.${scratch}.partial`
	const clone = ["clone", "--quiet", "--no-checkout", "--", checkout.remote, host.path(partial)]
	try {
		await host.execute(
			await asOwner(host, checkout, withSettings(command("git", ...clone), checkout.remote, token)),
		)
		await resolve(host, { ...checkout, path: partial }, commit)
		const target = commit ?? `refs/remotes/origin/${checkout.branch}`
		const args = ["checkout", "--quiet", "-B", checkout.branch, target]
		await host.execute(await asOwner(host, checkout, gitCommand(host, partial, args)))
	} catch (error) {
		await host.files.remove(partial)
		throw error
	}
	if (state.state === "absent") {
		await host.files.rename(partial, checkout.path)
		return undefined
	}
	const aside = `${checkout.path}.replaced-${scratch}`
	await host.files.rename(checkout.path, aside)
	try {
		await host.files.rename(partial, checkout.path)
	} catch (error) {
		await host.files.rename(aside, checkout.path)
		throw error
	}
	return aside
}

async function moveInPlace(
	host: LocalHost,
	checkout: Checkout,
	state: Extract<CheckoutState, { state: "present" }>,
	{ commit, token }: { commit: string | undefined; token: Secret | undefined },
): Promise<void> {
	const { path, branch, remote } = checkout
	const run = async (args: string[], stdin?: string) =>
		host.execute(
			await asOwner(host, checkout, gitCommand(host, path, args)),
			stdin === undefined ? {} : { stdin },
		)
	await removeStaleLocks(host, checkout)
	if (state.interrupted !== undefined) {
		const foreign = await changesSince(host, checkout, state.commit, state.interrupted)
		if (foreign.length > 0)
			throw new OperatorError(
				`an earlier run was stopped while it moved ${path} to ${state.interrupted.slice(0, 12)}, ` +
					`and files were changed since, which finishing it would lose: ${foreign.join(", ")}`,
				{ exitCode: exitCodes.refusedByGuard, hint: `git -C ${path} status   # and move your changes away` },
			)
		await run(["checkout", "--quiet", "--force", "-B", branch, state.interrupted])
	}
	if (commit === undefined || !(await has(host, checkout, commit))) {
		const fetch = command(
			"git",
			"-C",
			host.path(path),
			"fetch",
			"--quiet",
			"--no-recurse-submodules",
			"origin",
		)
		await host.execute(await asOwner(host, checkout, withSettings(fetch, remote, token)))
	}
	const target = await resolve(host, checkout, commit)
	const from = state.interrupted ?? state.commit
	await run(
		["update-ref", "--stdin"],
		`update ${intention}/from ${from}\nupdate ${intention}/target ${target}\n`,
	)
	// Files that git ignores are the server's own: .env, data.
	await run(["checkout", "--quiet", "--no-overwrite-ignore", "-B", branch, target])
	await run(["update-ref", "--stdin"], `delete ${intention}/from\ndelete ${intention}/target\n`)
}

/** The commit's id, once the remote's objects are here. */
async function resolve(host: LocalHost, checkout: Checkout, commit: string | undefined): Promise<string> {
	const { path, remote, branch } = checkout
	const args = ["rev-parse", "--verify", `${commit ?? `refs/remotes/origin/${branch}`}^{commit}`]
	try {
		return (await host.capture(await asOwner(host, checkout, gitCommand(host, path, args)))).stdout.trim()
	} catch (error) {
		throw new OperatorError(
			`${remote} has no ${commit === undefined ? `branch ${branch}` : `commit ${commit}`}: ${messageOf(error)}`,
			{ hint: `git ls-remote ${remote}`, cause: error },
		)
	}
}

/**
 * Of the files that moving from one commit to another touches, and of all that differ: those that are neither the old
 * one, nor the new one or its beginning (git was killed while it wrote), nor gone. Somebody else wrote these.
 */
async function changesSince(
	host: LocalHost,
	checkout: Checkout,
	from: string,
	target: string,
): Promise<string[]> {
	const ask = async (...args: string[]) =>
		(await host.capture(await asOwner(host, checkout, gitCommand(host, checkout.path, args)))).stdout
			.split("\0")
			.filter((part) => part !== "")
	// Pairs of `:<mode> <mode> <blob> <blob> <status>` and a path.
	const raw = await ask("diff-tree", "-r", "-z", "--raw", "--no-abbrev", "--no-renames", from, target)
	const foreign: string[] = []
	const touched = new Set<string>()
	for (let index = 0; index + 1 < raw.length; index += 2) {
		const [, , before, after = ""] = (raw[index] ?? "").split(" ")
		const file = raw[index + 1] ?? ""
		touched.add(file)
		const content = await contentOf(host.path(join(checkout.path, file)))
		if (content === undefined || blobId(content) === before || blobId(content) === after) continue
		if (
			/^0+$/.test(after) ||
			!(await blob(host, checkout, after)).subarray(0, content.length).equals(content)
		)
			foreign.push(file)
	}
	const changed = await ask("diff", "--name-only", "-z", "--no-renames", "--no-ext-diff", "HEAD")
	return [...foreign, ...changed.filter((file) => !touched.has(file))]
}

/** What git would store of it. Undefined when it is gone. */
async function contentOf(file: string): Promise<Buffer | undefined> {
	try {
		return (await lstat(file)).isSymbolicLink() ? Buffer.from(await readlink(file)) : await readFile(file)
	} catch (error) {
		if (codeOf(error) === "ENOENT" || codeOf(error) === "ENOTDIR") return undefined
		throw error
	}
}

const blobId = (content: Buffer) =>
	createHash("sha1").update(`blob ${content.length}\0`).update(content).digest("hex")

async function blob(host: LocalHost, checkout: Checkout, id: string): Promise<Buffer> {
	const chunks: Buffer[] = []
	await host.capture(
		await asOwner(host, checkout, gitCommand(host, checkout.path, ["cat-file", "blob", id])),
		{
			onStdout: (chunk) => {
				chunks.push(chunk)
			},
		},
	)
	return Buffer.concat(chunks)
}

/**
 * Locks that a killed git left, which git itself never removes. A git that is at work stands in the checkout's top
 * directory: as long as there is one, its locks are its own.
 */
async function removeStaleLocks(host: LocalHost, checkout: Checkout): Promise<void> {
	const top = await stat(host.path(checkout.path))
	for (const pid of (await readdir("/proc").catch(() => [])).filter((name) => /^\d+$/.test(name))) {
		const name = await readFile(`/proc/${pid}/comm`, "utf8").catch(() => "")
		if (!name.startsWith("git")) continue
		// Through the link: the path in it would be another one for a process in a container.
		const at = await stat(`/proc/${pid}/cwd`).catch(() => undefined)
		if (at?.ino === top.ino && at.dev === top.dev) return
	}
	const directory = host.path(`${checkout.path}/.git`)
	const locks = ["-type", "f", "-name", "*.lock", "-exec", "rm", "-f", "--", "{}", "+"]
	const find = command("find", directory, "-path", `${directory}/objects`, "-prune", "-o", ...locks)
	await host.execute(await asOwner(host, checkout, find))
}

/** Clones of runs that were killed. Their git may still be writing, so each run clones under a name of its own. */
async function removeAbandoned(host: LocalHost, { path }: Checkout): Promise<void> {
	const names = await readdir(host.path(dirname(path))).catch(() => [])
	const start = `${basename(path)}.`
	for (const name of names)
		if (name.startsWith(start) && /^[0-9a-f]{8}\.partial$/.test(name.slice(start.length)))
			await host.files.remove(join(dirname(path), name))
}

async function has(host: LocalHost, checkout: Checkout, commit: string): Promise<boolean> {
	const asked = gitCommand(host, checkout.path, ["cat-file", "-e", `${commit}^{commit}`])
	return host.test(await asOwner(host, checkout, asked))
}

/**
 * Holds a checkout that was just placed against what it should be, by git's own word: the commit, every object that
 * hangs on it, every file.
 * @throws {OperatorError} (3) saying what is wrong
 */
export async function verifyCheckout(host: LocalHost, checkout: Checkout, commit: string): Promise<void> {
	const { path, remote } = checkout
	const state = await readCheckout(host, checkout)
	if (state.state !== "present" || state.commit !== commit)
		throw new OperatorError(`the clone of ${remote} does not stand at ${commit}`)
	if (!state.pushed) throw new OperatorError(`no branch of ${remote} holds ${commit} any more`)
	if (state.changes.length > 0)
		throw new OperatorError(`files of the clone differ from ${commit}: ${state.changes.join(", ")}`)
	const fsck = gitCommand(host, path, ["fsck", "--full", "--no-dangling", "--no-progress"])
	await host.capture(await asOwner(host, checkout, fsck))
}

/** What differs from the commit, for the operator to judge; at most 40 lines. */
export async function changesOf(host: LocalHost, checkout: Checkout): Promise<string> {
	const diff = await asOwner(host, checkout, gitCommand(host, checkout.path, ["diff", "--stat", "HEAD"]))
	const { stdout, stderr } = await host.capture(diff, { allowedExitCodes: [1, 128] })
	return stdout.split("\n").slice(0, 40).join("\n").trim() || lastLines(stderr)
}

const gitCommand = (host: LocalHost, path: string, args: readonly string[]) =>
	withSettings(command("git", "-C", host.path(path), ...args))

/**
 * Only clone and fetch get the remote and the token: everything else may run what stands in the user's settings.
 * The helper prints the token from its environment, so that it stands neither on a command line, nor in a URL, nor in
 * a file, and answers for the remote's own host alone. The empty helper first switches off whatever the machine has
 * configured, which would store it.
 */
function withSettings(base: Command, remote = "", token?: Secret): Command {
	const helper =
		'!f() { test "$1" = get && printf "username=x-access-token\\npassword=%s\\n" "$COMFYUME_GIT_TOKEN"; }; f'
	const settings = [
		["credential.helper", ""],
		...(token !== undefined && /^https?:/.test(remote)
			? [[`credential.${new URL(remote).origin}.helper`, helper]]
			: []),
		["http.followRedirects", "false"],
		["core.hooksPath", "/dev/null"],
		["core.fsmonitor", "false"],
		// It would go on in the background, with the token in its environment.
		["maintenance.auto", "false"],
		["gc.auto", "0"],
	]
	return withOptions(base, {
		environment: {
			GIT_TERMINAL_PROMPT: "0",
			// `git status` would write the index anew; a check changes nothing.
			GIT_OPTIONAL_LOCKS: "0",
			GIT_CONFIG_COUNT: String(settings.length),
			...Object.fromEntries(
				settings.flatMap(([key = "", value = ""], index) => [
					[`GIT_CONFIG_KEY_${index}`, key],
					[`GIT_CONFIG_VALUE_${index}`, value],
				]),
			),
		},
		secretEnvironment: token === undefined ? {} : { COMFYUME_GIT_TOKEN: token.reveal() },
	})
}

async function asOwner(host: LocalHost, { user }: Checkout, base: Command): Promise<Command> {
	if (host.standIn || user === "root") return base
	// --preserve-environment is runuser's default without --login; HOME must be the user's own for git's settings.
	const home = await homeOf(host, user)
	return withOptions(command("runuser", "--user", user, "--", base.program, ...base.args), {
		environment: { ...base.environment, HOME: home },
		secretEnvironment: base.secretEnvironment ?? {},
	})
}

// A checkout is asked ten things one after another, and a user's home doesn't move meanwhile.
const homes = new WeakMap<LocalHost, Map<string, string>>()

async function homeOf(host: LocalHost, user: string): Promise<string> {
	const known = homes.get(host) ?? new Map<string, string>()
	homes.set(host, known)
	const before = known.get(user)
	if (before !== undefined) return before
	const { stdout } = await host.capture(command("getent", "passwd", user), { allowedExitCodes: [2] })
	const home = stdout.trim().split(":")[5]
	if (home === undefined)
		throw new OperatorError(`there is no user ${user} on ${host.name}`, { hint: `adduser ${user}` })
	known.set(user, home)
	return home
}
