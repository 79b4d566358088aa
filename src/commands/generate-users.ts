// comfyume generate-users: one roster and one configuration become everything that the stack is started from.
import { randomBytes } from "node:crypto"
import { hostname, userInfo } from "node:os"
import { join, resolve } from "node:path"
import { Command } from "commander"
import { chooseEnvironment, loadConfiguration, readHostOwnEnvironment } from "../lib/config/configuration.ts"
import { type Environment, stackOf } from "../lib/config/environment.ts"
import { exitCodes, OperatorError } from "../lib/errors.ts"
import { readHtpasswd } from "../lib/formats/htpasswd.ts"
import { localHost } from "../lib/host/local.ts"
import {
	type Completed,
	completeCredentials,
	makeHtpasswd,
	readCredentials,
	renderCredentials,
	renderCsv,
	rosterOf,
} from "../lib/stack/credentials.ts"
import { containersOf, describeStack, files, type Stack } from "../lib/stack/description.ts"
import { diffLines } from "../lib/stack/diff.ts"
import { lookAtDirectories, makeDirectories } from "../lib/stack/directories.ts"
import { environmentFile, renderEnvironment } from "../lib/stack/env-render.ts"
import { refuseTrackedPath } from "../lib/stack/outside-git.ts"
import { renderFiles } from "../lib/stack/render.ts"
import { changeRoster, describeRoster, type Roster, userId } from "../lib/stack/roster.ts"
import { type Change, findChanges, readIfThere, writeChanges, writeSecretFile } from "../lib/stack/write.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun, Surroundings } from "../lib/ui/surroundings.ts"

type Options = {
	config?: string
	env?: string
	count?: string
	add?: string[]
	remove?: string[]
	rotate?: string[]
	directory?: string
	credentials?: string
	csv?: string
	dryRun?: boolean
	makeDirectories: boolean
}

export function create(run: CommandRun): Command {
	return new Command("generate-users")
		.summary("write users, passwords, compose and nginx files of the stack")
		.description(
			"Writes all files of the stack from the configuration and the roster. Passwords that are there are kept; " +
				"users' directories are made and never removed. A second run changes nothing.",
		)
		.option(
			"--config <file>",
			"the configuration (else $COMFYUME_CONFIG, comfyume.yaml upwards, /etc/comfyume)",
		)
		.option("--env <name>", "the environment")
		.option("--count <number>", "make it this many users, by adding the lowest free numbers")
		.option("--add <user...>", "add these users, as in user021")
		.option("--remove <user...>", "remove these users; their data stays")
		.option("--rotate <user...>", "a new password for these users, or for the admin")
		.option("--directory <path>", "where to write (else the configuration's stack.directory)")
		.option("--credentials <file>", "an older file with USER_CREDENTIALS_… to take passwords from, once")
		.option("--csv <file>", "also write the sheet to hand out, with a link for each user")
		.option("--no-make-directories", "don't make the users' directories, as on another machine than the host")
		.option("--dry-run", "only show what would change; secrets are not shown")
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 7, 8, 129, 130, 143]))
		.action((options: Options) => generate(run, options))
}

async function generate({ surroundings, finish }: CommandRun, options: Options): Promise<void> {
	const { terminal, signal, workingDirectory } = surroundings
	const environment = environmentOf(surroundings, options)
	const directory = stackOf(environment).directory
	const csv = options.csv === undefined ? undefined : resolve(workingDirectory, options.csv)
	const host = localHost({ name: hostname(), environment: surroundings.variables, signal })
	for (const file of [
		...secretFiles.map((name) => join(directory, name)),
		...(csv === undefined ? [] : [csv]),
	])
		await refuseTrackedPath(host, file)

	const { stack, roster, completed, removed } = await people(surroundings, environment, options)
	const existing = await readIfThere(join(directory, files.environment))
	const rendered = renderEnvironment(stack, { existing, makeSecret })
	const adminName = stack.configuration.adminName
	const htpasswd = await makeHtpasswd(
		completed.credentials,
		await readIfThere(join(directory, files.htpasswd)),
		signal,
	)
	const changes = await findChanges(
		directory,
		renderFiles(stack, {
			credentials: renderCredentials(completed.credentials, roster, adminName),
			environment: environmentFile(stack, rendered),
			htpasswd: htpasswd.text,
			proxySecret: rendered.proxySecret,
		}),
	)
	const places = await lookAtDirectories(stack)
	const dryRun = options.dryRun === true

	for (const change of changes) terminal.out(describeChange(change))
	for (const name of completed.made) terminal.out(`new password: ${name}\n`)
	for (const name of rendered.made) terminal.out(`new secret: ${name}\n`)
	for (const id of removed) terminal.out(`removed: ${id}\n`)
	if (!dryRun) {
		await writeChanges(directory, changes, surroundings.randomId())
		if (csv !== undefined)
			await writeSecretFile(
				csv,
				renderCsv(completed.credentials, roster, originOf(stack)),
				surroundings.randomId(),
			)
		if (options.makeDirectories) await makeDirectories(places.missing, userInfo().uid === 0)
	}
	if (options.makeDirectories) for (const { path } of places.missing) terminal.out(`directory: ${path}\n`)
	for (const path of places.leftOver) terminal.talk(`note: ${path} is of nobody in the roster; it stays\n`)
	const missed = options.makeDirectories ? places.unreachable : []
	for (const base of missed)
		terminal.talk(`failed: ${base} is not there: nothing was made below it\n  next: findmnt ${base}\n`)
	terminal.talk(summary(stack, roster, changes.length, directory, dryRun))
	if (missed.length > 0) finish(exitCodes.incomplete)
}

const secretFiles = [files.credentials, files.environment, files.htpasswd, files.proxySecret]

function environmentOf(surroundings: Surroundings, options: Options): Environment {
	const configuration = loadConfiguration({ ...surroundings, path: options.config })
	const environment = chooseEnvironment(configuration, {
		option: options.env,
		variables: surroundings.variables,
		hostOwnEnvironment: readHostOwnEnvironment(),
	})
	if (options.directory === undefined) return environment
	const directory = resolve(surroundings.workingDirectory, options.directory)
	return { ...environment, stack: { ...stackOf(environment), directory } }
}

type People = { stack: Stack; roster: Roster; completed: Completed; removed: readonly string[] }

/** Who is in the roster afterwards, and with what passwords. */
async function people(
	{ workingDirectory }: Surroundings,
	environment: Environment,
	{ count, add = [], remove = [], rotate = [], credentials: older }: Options,
): Promise<People> {
	const { directory, adminName, users } = stackOf(environment)
	const file = join(directory, files.credentials)
	const own = await readIfThere(file)
	const where = own === "" && older !== undefined ? resolve(workingDirectory, older) : file
	const text = own === "" && older !== undefined ? await readIfThere(where) : own
	const existing = readCredentials(text, { where, adminName })
	if (where !== file && existing.size === 0)
		throw usage(`${where} holds no USER_CREDENTIALS_…`, "comfyume generate-users --help")
	const before = rosterOf(existing)
	// Without this, a lost credentials file would give everybody a new password in the middle of a workshop.
	if (before.length === 0) {
		const { hashes } = readHtpasswd(await readIfThere(join(directory, files.htpasswd)))
		const unknown = [...hashes.keys()].filter((name) => !rotate.includes(name))
		if (unknown.length > 0)
			throw new OperatorError(
				`${file} is missing or empty, and ${unknown.length} users have passwords in ${files.htpasswd}`,
				{
					exitCode: exitCodes.refusedByGuard,
					hint: `restore it, or name it with --credentials; for new passwords: --rotate ${unknown.join(" ")}`,
				},
			)
	}
	const wanted = count === undefined ? (before.length === 0 ? users : undefined) : countOf(count)
	const beginning = before.length === 0 && add.length > 0 && count === undefined ? undefined : wanted
	const roster = changeRoster(before, { count: beginning, add, remove })
	const names = [...roster.map(userId), adminName]
	for (const name of rotate)
		if (!names.includes(name))
			throw usage(`${name} is not in the roster`, `there are ${describeRoster(roster)}`)
	const completed = completeCredentials(existing, { names, rotate, makePassword })
	return { stack: describeStack(environment, roster), roster, completed, removed: remove }
}

function countOf(text: string): number {
	if (!/^\d{1,6}$/.test(text)) throw usage(`--count ${text} is not a number`, "as in --count 20")
	return Number(text)
}

// 18 bytes are 24 letters of A-Z a-z 0-9 - _: nothing that any of the files or a link reads otherwise.
const makePassword = () => randomBytes(18).toString("base64url")
const makeSecret = () => randomBytes(24).toString("base64url")

function describeChange({ path, secret, before, text, modeDiffers }: Change): string {
	const verb = before === undefined ? "new" : before === text ? "mode" : "changed"
	const head = `${verb}: ${path}${modeDiffers && verb === "changed" ? " (and its mode)" : ""}\n`
	// Of a new file everything is new, and of a secret one nothing is shown.
	if (secret || before === undefined || before === text) return head
	return (
		head +
		diffLines(before, text)
			.map((line) => `  ${line}\n`)
			.join("")
	)
}

const originOf = ({ domain, configuration }: Stack) =>
	configuration.ports.https === 443 ? domain : `${domain}:${configuration.ports.https}`

function summary(stack: Stack, roster: Roster, changed: number, directory: string, dryRun: boolean): string {
	const what = `${roster.length === 1 ? "1 user" : `${roster.length} users`} (${describeRoster(roster)}), ${containersOf(stack).length} containers`
	if (changed === 0) return `nothing to change in ${directory}: ${what}\n`
	const count = `${changed === 1 ? "1 file" : `${changed} files`}`
	return dryRun
		? `would write ${count} to ${directory}: ${what}\n`
		: `wrote ${count} to ${directory}: ${what}\n`
}

const usage = (message: string, hint: string) =>
	new OperatorError(message, { exitCode: exitCodes.usage, hint })
