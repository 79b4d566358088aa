// Who gets in: the operators' keys, first of all that is done to a fresh machine. A run that dies halfway must leave a
// machine that can be repaired from elsewhere.
import { constants } from "node:fs"
import { type FileHandle, lstat, open, rename, rm } from "node:fs/promises"
import { join } from "node:path"
import { codeOf, exitCodes, OperatorError, systemError } from "../../errors.ts"
import { missingKeys, withKeys } from "../../formats/authorized-keys.ts"
import { command } from "../../host/command.ts"
import { type HoldOptions, holdDirectory, setPermissions } from "../../host/held-directory.ts"
import type { LocalHost } from "../../host/local.ts"
import { isDirectory } from "../../host/presence.ts"
import { type Finding, needed, type Step, satisfied } from "../../plan/step.ts"
import type { StepContext } from "../context.ts"

/**
 * The keys of `operators` let in as root. Keys that stand there stay, whoever put them there. Its check and its apply
 * throw when a link or something else stands where the file belongs.
 */
export function operatorsAreIn({ host, environment }: StepContext): Step {
	const root: Account = { name: "root", home: "/root", ownUid: 0, ownGid: 0, noLinksFrom: "/root/.ssh" }
	return accessStep(host, environment.operators, {
		id: "access",
		title: "the operators' keys let in as root",
		account: async () => root,
	})
}

/** The same for the platform's user, once it is there. */
export function operatorsReachUser({ host, environment: { operators, user } }: StepContext): Step {
	return accessStep(host, operators, {
		id: "user-access",
		title: `the operators' keys let in as ${user}`,
		account: () => findAccount(host, user),
	})
}

type Account = {
	name: string
	home: string
	ownUid: number
	ownGid: number
	/** From here on down nobody but the account itself decides what a name means. */
	noLinksFrom: string
}

function accessStep(
	host: LocalHost,
	operators: readonly string[],
	{ id, title, account }: { id: string; title: string; account: () => Promise<Account | undefined> },
): Step {
	return {
		id,
		title,
		check: async (): Promise<Finding> => {
			if (operators.length === 0)
				return satisfied("no operators are configured: only the keys that are there already get in")
			// Its users are this machine's.
			if (host.standIn) return satisfied("a directory stands in for the machine: nobody logs in to it")
			const found = await account()
			if (found === undefined) return satisfied("there is no such user yet")
			const keys = await readKeys(host, found)
			const missing = missingKeys(keys?.text ?? "", operators)
			if (missing.length > 0)
				return needed(`${missing.length} of ${counted(operators)} missing: ${missing.map(named).join(", ")}`)
			const wrong = keys === undefined ? undefined : refusedBySshd(keys, found)
			return wrong === undefined
				? satisfied(`${counted(operators)} in ${found.home}/.ssh/authorized_keys`)
				: needed(wrong)
		},
		apply: async () => {
			const found = await account()
			if (found !== undefined) await addKeys(host, found, operators)
		},
	}
}

const counted = ({ length }: readonly string[]) => `${length} ${length === 1 ? "key" : "keys"}`

/** A key as people call it: by its comment, else by its last letters. */
function named(line: string): string {
	const [, key = "", ...comment] = line.trim().split(/\s+/)
	return comment.length > 0 ? comment.join(" ") : `…${key.slice(-12)}`
}

/** By the system's own word. Its home must be there: here none is made. */
async function findAccount(host: LocalHost, user: string): Promise<Account | undefined> {
	const { stdout, exitCode } = await host.capture(command("getent", "passwd", user), {
		allowedExitCodes: [2],
	})
	if (exitCode !== 0) return undefined
	const [, , uid, gid, , home = ""] = stdout.trim().split(":")
	if (!(await isDirectory(host.path(home))))
		throw new OperatorError(`${home}, the home directory of ${user}, is not there`, {
			hint: `mkhomedir_helper ${user}`,
		})
	return { name: user, home, ownUid: Number(uid), ownGid: Number(gid), noLinksFrom: home }
}

type Keys = { text: string; fileMode: number; directoryMode: number; uid: number; directoryUid: number }

const directoryOf = ({ home }: Account) => `${home}/.ssh`
const fileName = "authorized_keys"

const holding = (host: LocalHost, { noLinksFrom }: Account): HoldOptions => ({
	noLinksFrom,
	ownership: !host.standIn,
})

async function readKeys(host: LocalHost, account: Account): Promise<Keys | undefined> {
	const directory = directoryOf(account)
	// The first key on a fresh machine.
	const there = await lstat(host.path(directory)).catch((error: unknown) => {
		if (codeOf(error) === "ENOENT") return undefined
		throw systemError(error, `looking at ${directory}`)
	})
	if (there === undefined) return undefined
	await using held = await holdDirectory(host.root, directory, holding(host, account))
	const handle = await openKeys(held.entry(fileName), join(directory, fileName))
	if (handle === undefined) return undefined
	await using file = handle
	const { mode, uid } = await file.stat()
	return {
		text: await file.readFile("utf8"),
		fileMode: mode & 0o7777,
		directoryMode: there.mode & 0o7777,
		uid,
		directoryUid: there.uid,
	}
}

/** Neither a link nor a pipe, which whoever owns the directory could put there. */
async function openKeys(entry: string, shown: string): Promise<FileHandle | undefined> {
	const { O_RDONLY, O_NOFOLLOW, O_NONBLOCK } = constants
	const refuse = (what: string) =>
		new OperatorError(`${shown} is ${what}: no key is written through it`, {
			exitCode: exitCodes.refusedByGuard,
			hint: `ls -l ${shown}`,
		})
	const handle = await open(entry, O_RDONLY | O_NOFOLLOW | O_NONBLOCK).catch((error: unknown) => {
		if (codeOf(error) === "ENOENT") return undefined
		if (codeOf(error) === "ELOOP") throw refuse("a link")
		throw systemError(error, `opening ${shown}`)
	})
	if (handle === undefined || (await handle.stat()).isFile()) return handle
	await handle.close()
	throw refuse("no regular file")
}

// sshd's StrictModes passes over a file that others could have written.
function refusedBySshd(keys: Keys, account: Account): string | undefined {
	const { fileMode, directoryMode, uid, directoryUid } = keys
	const directory = directoryOf(account)
	if (uid !== account.ownUid || directoryUid !== account.ownUid)
		return `${directory} belongs to another user than ${account.name}: sshd passes over it`
	if (directoryMode !== 0o700) return `${directory} has mode ${octal(directoryMode)}, not 700`
	if (fileMode !== 0o600) return `${directory}/${fileName} has mode ${octal(fileMode)}, not 600`
	return undefined
}

const octal = (mode: number) => mode.toString(8)

/** Written beside and renamed, through directories that are held: what is there stays until the new one is whole. */
async function addKeys(host: LocalHost, account: Account, operators: readonly string[]): Promise<void> {
	const directory = directoryOf(account)
	const owner = { uid: account.ownUid, gid: account.ownGid }
	const options = holding(host, account)
	await using home = await holdDirectory(host.root, account.home, options)
	await using held = await holdDirectory(host.root, directory, { ...options, onMade: () => {} })
	await setPermissions(home.entry(".ssh"), { mode: 0o700, ...owner }, options.ownership)
	const before = await openKeys(held.entry(fileName), join(directory, fileName))
	const text = (await before?.readFile("utf8")) ?? ""
	await before?.close()

	const partial = held.entry(`${fileName}.comfyume.partial`)
	try {
		// One that a killed run left.
		await rm(partial, { force: true })
		await using file = await open(partial, "wx", 0o600)
		if (options.ownership) await file.chown(owner.uid, owner.gid)
		await file.chmod(0o600)
		await file.writeFile(withKeys(text, operators))
		await file.sync()
		await rename(partial, held.entry(fileName))
		await using names = await open(held.entry("."), constants.O_RDONLY)
		await names.sync()
	} catch (error) {
		await rm(partial, { force: true })
		throw systemError(error, `writing ${directory}/${fileName}`)
	}
}
