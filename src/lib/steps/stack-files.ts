// The files of the stack as steps: who is in it, with what passwords, and everything that is rendered from that. What is
// wanted is worked out once; the checks hold the disk against it.
import { randomBytes } from "node:crypto"
import { userInfo } from "node:os"
import { join } from "node:path"
import { type Environment, stackOf } from "../config/environment.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { readEnvFile } from "../formats/env-file.ts"
import { readHtpasswd } from "../formats/htpasswd.ts"
import { type Finding, needed, type Plan, type Report, type Step, satisfied } from "../plan/step.ts"
import { keepCompared, readCompared } from "../stack/compared.ts"
import {
	type Completed,
	completeCredentials,
	makeHtpasswd,
	readCredentials,
	renderCredentials,
	renderCsv,
	rosterOf,
} from "../stack/credentials.ts"
import { containersOf, describeStack, files, type Stack, secretNames } from "../stack/description.ts"
import { diffLines } from "../stack/diff.ts"
import { lookAtDirectories, makeDirectories } from "../stack/directories.ts"
import { environmentFile, renderEnvironment } from "../stack/env-render.ts"
import { renderWorkerEnvironment } from "../stack/env-worker.ts"
import { refuseTrackedPath } from "../stack/outside-git.ts"
import { renderFiles, renderWorkerFiles, type StackFile } from "../stack/render.ts"
import { changeRoster, describeRoster, type Roster, userId } from "../stack/roster.ts"
import { type Change, findChanges, readIfThere, writeChanges, writeSecretFile } from "../stack/write.ts"
import type { StepContext } from "./context.ts"

export type UsersOptions = {
	count?: string
	add: readonly string[]
	remove: readonly string[]
	rotate: readonly string[]
	/** Write here instead of the configuration's `stack.directory`; absolute. */
	directory?: string
	/** An older file with passwords: what the operator called it, and its text. */
	older?: { where: string; text: string }
	/** The sheet to hand out; absolute, on this machine. */
	csv?: string
	makeDirectories: boolean
	/** The command's own words, to be typed again. */
	again: string
}

/** All files of the stack, the users' directories, the sheet; on a GPU host what its workers are started from. */
export async function planUsers(context: StepContext, options: UsersOptions): Promise<Plan> {
	if (context.hostConfiguration.role === "worker") return planWorkers(context, options)
	const environment = environmentWith(context.environment, options.directory)
	const { directory } = stackOf(environment)
	const { csv } = options
	for (const file of [
		...secretFiles.map((name) => join(directory, name)),
		...(csv === undefined ? [] : [csv]),
	])
		await refuseTrackedPath(context.host, file)
	const { stack, roster, completed } = await people(environment, options)
	const adminName = stack.configuration.adminName
	const rendered = renderEnvironment(stack, {
		existing: await readIfThere(join(directory, files.environment)),
		makeSecret,
	})
	const known = await readCompared(context.host)
	const htpasswd = await makeHtpasswd(
		completed.credentials,
		await readIfThere(join(directory, files.htpasswd)),
		{ known, signal: context.signal },
	)
	await keepCompared(context.host, { known, compared: htpasswd.compared })
	const wanted = renderFiles(stack, {
		credentials: renderCredentials(completed.credentials, roster, adminName),
		environment: environmentFile(stack, rendered),
		htpasswd: htpasswd.text,
		proxySecret: rendered.proxySecret,
		workerTokens: rendered.workerTokens,
	})
	const told = [
		...completed.made.map((name) => ({ change: "new password", name })),
		...rendered.made.map((name) => ({ change: "new secret", name })),
		...options.remove.map((name) => ({ change: "removed", name })),
	]
	const users = roster.length === 1 ? "1 user" : `${roster.length} users`
	const what = `${users} (${describeRoster(roster)}), ${containersOf(stack).length} containers`
	const sheet = csv === undefined ? undefined : renderCsv(completed.credentials, roster, originOf(stack))
	return {
		command: "generate-users",
		environment: context.environment.name,
		host: context.hostConfiguration.name,
		place: context.place,
		steps: [
			writtenFiles(context, { directory, wanted, told, what }),
			...(options.makeDirectories ? [usersDirectories(stack)] : []),
			...(csv === undefined || sheet === undefined ? [] : [writtenSheet(context, csv, sheet)]),
		],
		next: ({ exitCode, dryRun }) =>
			dryRun || exitCode !== exitCodes.done
				? options.again
				: `comfyume start ${context.spoken}   # what runs with older files is made anew`,
	}
}

/** Tokens come from the app server: there is nobody to be added, and no secret to be made. */
async function planWorkers(context: StepContext, options: UsersOptions): Promise<Plan> {
	const { hostConfiguration, host } = context
	const { count, add, remove, rotate, csv, older } = options
	if (count !== undefined || csv !== undefined || [...add, ...remove, ...rotate].length > 0)
		throw usage(
			`${hostConfiguration.name} is a GPU worker, and users are the app server's`,
			`comfyume generate-users ${context.spoken}`,
		)
	const environment = environmentWith(context.environment, options.directory)
	const stack = describeStack(environment, [], hostConfiguration)
	const { directory } = stack.configuration
	await refuseTrackedPath(host, join(directory, files.environment))
	const rendered = renderWorkerEnvironment(stack, {
		existing: await readIfThere(join(directory, files.environment)),
		...(older === undefined
			? {}
			: { handed: { where: older.where, entries: readEnvFile(older.text).entries } }),
	})
	const ids = stack.workers.map(({ id }) => id).join(", ")
	return {
		command: "generate-users",
		environment: environment.name,
		host: hostConfiguration.name,
		place: context.place,
		steps: [
			writtenFiles(context, {
				directory,
				wanted: renderWorkerFiles(stack, rendered.text),
				told: [
					...rendered.taken.map((name) => ({ change: "new token", name })),
					...rendered.dropped.map((name) => ({ change: "removed", name })),
				],
				what: `${stack.workers.length === 1 ? "1 worker" : `${stack.workers.length} workers`} (${ids})`,
			}),
			...(options.makeDirectories ? [usersDirectories(stack)] : []),
		],
		next: ({ exitCode, dryRun }) =>
			dryRun || exitCode !== exitCodes.done
				? options.again
				: `comfyume start ${context.spoken}   # what runs with older files is made anew`,
	}
}

const secretFiles = [files.credentials, files.environment, files.htpasswd, files.proxySecret]

type Told = { change: string; name: string }

/** All of them as they are wanted, or, where one can't be written, all of them as they were. */
function writtenFiles(
	context: StepContext,
	{
		directory,
		wanted,
		told,
		what,
	}: { directory: string; wanted: readonly StackFile[]; told: readonly Told[]; what: string },
): Step {
	return {
		id: "files",
		title: "Files of the stack",
		async check(report): Promise<Finding> {
			const changes = await findChanges(directory, wanted)
			if (changes.length === 0) return satisfied(`in ${directory}: ${what}`)
			tell(report, changes, told)
			const count = changes.length === 1 ? "1 file differs" : `${changes.length} files differ`
			return needed(`${count} in ${directory}: ${what}`)
		},
		apply: async () => writeChanges(directory, await findChanges(directory, wanted), context.randomId()),
	}
}

function tell(report: Report, changes: readonly Change[], told: readonly Told[]): void {
	for (const { path, secret, before, text, modeDiffers } of changes) {
		const change = before === undefined ? "new" : before === text ? "mode" : "changed"
		// Of a new file everything is new, and of a secret one nothing is shown.
		const isShown = !secret && before !== undefined && before !== text
		report.change({
			change,
			name: `${path}${modeDiffers && change === "changed" ? " (and its mode)" : ""}`,
			...(isShown ? { diff: diffLines(before, text) } : {}),
		})
	}
	for (const one of told) report.change(one)
}

function usersDirectories(stack: Stack): Step {
	return {
		id: "directories",
		title: stack.role === "worker" ? "Directory of outputs on the share" : "Users' directories",
		requires: ["files"],
		async check(report): Promise<Finding> {
			const { missing, unreachable, leftOver } = await lookAtDirectories(stack)
			for (const { path } of missing) report.change({ change: "directory", name: path })
			for (const path of leftOver) report.note(`${path} is of nobody in the roster; it stays`)
			const [base] = unreachable
			if (base !== undefined)
				return needed(`${unreachable.join(", ")} is not there: nothing is made below it`, `findmnt ${base}`)
			if (missing.length === 0) return satisfied("all are there")
			return needed(missing.length === 1 ? "1 is missing" : `${missing.length} are missing`)
		},
		async apply() {
			await makeDirectories((await lookAtDirectories(stack)).missing, userInfo().uid === 0)
		},
	}
}

const writtenSheet = (context: StepContext, path: string, text: string): Step => ({
	id: "sheet",
	title: "Sheet to hand out",
	requires: ["files"],
	async check(): Promise<Finding> {
		return (await readIfThere(path)) === text ? satisfied(path) : needed(`${path} is to be written`)
	},
	apply: () => writeSecretFile(path, text, context.randomId()),
})

export type EnvironmentFileOptions = {
	rotate: readonly string[]
	/** Absolute. */
	directory?: string
	again: string
}

/** The env file alone. */
export async function planEnvironmentFile(
	context: StepContext,
	{ rotate, directory: elsewhere, again }: EnvironmentFileOptions,
): Promise<Plan> {
	if (context.hostConfiguration.role === "worker")
		throw usage(
			`${context.hostConfiguration.name} is a GPU worker: its env file is written with the rest of its files`,
			`comfyume generate-users ${context.spoken}`,
		)
	const environment = environmentWith(context.environment, elsewhere)
	const { directory, adminName, users } = stackOf(environment)
	await refuseTrackedPath(context.host, join(directory, files.environment))
	const unknown = rotate.find((name) => !secretNames.some((known) => known === name))
	if (unknown !== undefined)
		throw usage(`${unknown} is not a secret that is made here`, `choose from: ${secretNames.join(", ")}`)
	const where = join(directory, files.credentials)
	const there = rosterOf(readCredentials(await readIfThere(where), { where, adminName }))
	const stack = describeStack(environment, there.length === 0 ? changeRoster([], { count: users }) : there)
	const rendered = renderEnvironment(stack, {
		existing: await readIfThere(join(directory, files.environment)),
		rotate,
		makeSecret,
	})
	const wanted = [
		{ path: files.environment, text: environmentFile(stack, rendered), mode: 0o600, secret: true },
	]
	const told = rendered.made.map((name) => ({ change: "new secret", name }))
	return {
		command: "env",
		environment: context.environment.name,
		host: context.hostConfiguration.name,
		place: context.place,
		steps: [writtenFiles(context, { directory, wanted, told, what: files.environment })],
		next: ({ exitCode, dryRun }) => {
			if (dryRun || exitCode !== exitCodes.done) return again
			// nginx holds the one too, in a file of its own, and GPU hosts are handed tokens that are made with the other.
			return rotate.includes("PROXY_SECRET") || (rotate.includes("TOKEN_KEY") && stack.workerHosts.length > 0)
				? `comfyume generate-users ${context.spoken}`
				: `comfyume start ${context.spoken}   # what runs with the older file is made anew`
		},
	}
}

const environmentWith = (environment: Environment, directory: string | undefined): Environment =>
	directory === undefined ? environment : { ...environment, stack: { ...stackOf(environment), directory } }

type People = { stack: Stack; roster: Roster; completed: Completed }

/** Who is in the roster afterwards, and with what passwords. */
async function people(
	environment: Environment,
	{ count, add, remove, rotate, older }: UsersOptions,
): Promise<People> {
	const { directory, adminName, users } = stackOf(environment)
	const file = join(directory, files.credentials)
	const own = await readIfThere(file)
	const taken = own === "" && older !== undefined ? older : { where: file, text: own }
	const existing = readCredentials(taken.text, { where: taken.where, adminName })
	if (taken === older && existing.size === 0)
		throw usage(`${taken.where} holds no USER_CREDENTIALS_…`, "comfyume generate-users --help")
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
	return { stack: describeStack(environment, roster), roster, completed }
}

function countOf(text: string): number {
	if (!/^\d{1,6}$/.test(text)) throw usage(`--count ${text} is not a number`, "as in --count 20")
	return Number(text)
}

// 18 bytes are 24 letters of A-Z a-z 0-9 - _: nothing that any of the files or a link reads otherwise.
const makePassword = () => randomBytes(18).toString("base64url")
const makeSecret = () => randomBytes(24).toString("base64url")

const originOf = ({ domain, configuration }: Stack) =>
	configuration.ports.https === 443 ? domain : `${domain}:${configuration.ports.https}`

const usage = (message: string, hint: string) =>
	new OperatorError(message, { exitCode: exitCodes.usage, hint })
