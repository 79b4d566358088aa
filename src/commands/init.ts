// comfyume init: a first comfyume.yaml, from answers to questions or from options. It asks for no secret.
import { access, constants, link, open, readFile, rm } from "node:fs/promises"
import { dirname, join, resolve } from "node:path"
import { Command } from "commander"
import { findConfiguration, parseConfiguration, problemsOf } from "../lib/config/configuration.ts"
import { draftEnvironment } from "../lib/config/draft.ts"
import type { Environment } from "../lib/config/environment.ts"
import { completeAnswers, type Existing, judgeAnswer, textWith } from "../lib/config/interview.ts"
import { type Answers, questions } from "../lib/config/questions.ts"
import { secretsNeededBy } from "../lib/config/secrets.ts"
import { codeOf, exitCodes, OperatorError, systemError } from "../lib/errors.ts"
import { quoteForShell } from "../lib/host/command.ts"
import { syncPath } from "../lib/host/sync.ts"
import { paint } from "../lib/ui/color.ts"
import { wrapText } from "../lib/ui/format.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import { canAsk, openQuestions } from "../lib/ui/prompts.ts"
import type { CommandRun, Surroundings } from "../lib/ui/surroundings.ts"

type Options = Readonly<Record<string, string | boolean | undefined>> & {
	output: string
	print?: boolean
	dryRun?: boolean
	yes?: boolean
}

export function create(run: CommandRun): Command {
	const command = new Command("init")
		.summary("write a first comfyume.yaml, by asking")
		.description(
			"Asks for what a first configuration needs, holds each answer against the schema, and writes comfyume.yaml. " +
				"What an option answers isn't asked; without a terminal every necessary answer must be an option. " +
				"`none` as an answer says that there is none of it. A file that is there is never overwritten: " +
				"for a further environment, --print gives the block to add to it. No secret is asked for.",
		)
	for (const { flag, argument, label, forWhat, usual } of questions) {
		const otherwise = usual?.({}) ?? ""
		command.option(
			`${flag} <${argument}>`,
			`${label}: ${forWhat}${otherwise === "" ? "" : ` (else ${otherwise})`}`,
		)
	}
	return command
		.option("--output <file>", "where it is written", "comfyume.yaml")
		.option("--print", "to stdout instead; where FILE is there, only the environment to be added to it")
		.option("--dry-run", "the same as --print")
		.option("--yes", "ask nothing: what no option answers is as usual")
		.addHelpText("after", exitStatusHelp([0, 2, 3, 7, 8, 129, 130, 143]))
		.action((options: Options) => init(run, options))
}

async function init({ surroundings }: CommandRun, options: Options): Promise<void> {
	const { terminal } = surroundings
	const path = resolve(surroundings.workingDirectory, options.output)
	const prints = options.print === true || options.dryRun === true
	// Before anybody has answered anything.
	const existing = await readExisting(path)
	if (existing !== undefined && !prints)
		throw new OperatorError(`${path} is there already, and is never overwritten`, {
			exitCode: exitCodes.refusedByGuard,
			hint: "comfyume config check, or for a further environment: comfyume init --print",
		})
	if (existing !== undefined) requireRight(existing)
	if (!prints) await requireWritable(dirname(path))

	const given = givenAnswers(options)
	const asks = options.yes !== true && canAsk(surroundings)
	const answers = asks ? await askAll(surroundings, given, existing) : completeAnswers(given, existing)
	const text = textWith(answers, existing)
	// The last word has what every command reads it by.
	const { environments } = parseConfiguration(text, path)
	const environment = environments[answers.environment ?? ""]
	if (environment === undefined) throw new Error(`the draft has no environment ${answers.environment}`)
	const before = findConfiguration(surroundings)
	if (!prints) await writeNew(path, text, surroundings.randomId())
	else terminal.out(existing === undefined ? text : draftEnvironment(answers))
	const done = !prints
		? `wrote ${path}`
		: existing === undefined
			? `nothing is written: this is what would stand in ${path}`
			: `nothing is written: add these lines to ${path}, below environments:`
	terminal.talk("\n")
	sayTo(terminal)(done)
	await tellWhatIsNext(surroundings, path, { environment, before })
}

/** What options say, by the questions' names. */
function givenAnswers(options: Options): Answers {
	const given = questions.flatMap(({ name, flag }) => {
		const value = options[optionName(flag)]
		return typeof value === "string" ? [[name, answerOf(value)] as const] : []
	})
	return Object.fromEntries(given)
}

/** As Commander calls an option: `--scratch-device` is scratchDevice. */
const optionName = (flag: string) =>
	flag.slice(2).replaceAll(/-(.)/g, (_, letter: string) => letter.toUpperCase())

const answerOf = (typed: string) => (typed.trim() === "none" ? "" : typed.trim())

/** Asks whatever options have not answered, until each answer is right. */
async function askAll(
	surroundings: Surroundings,
	given: Answers,
	existing: Existing | undefined,
): Promise<Answers> {
	const { terminal, signal } = surroundings
	const { strong, bad } = paint(terminal.color)
	const say = sayTo(terminal)
	say(
		"Enter takes what stands in brackets, and none says that there is none. Nothing is written before the last answer.",
	)
	const asked = openQuestions(surroundings)
	let answers: Answers = {}
	try {
		for (const question of questions) {
			const { name, flag, heading, label, forWhat, example } = question
			if (heading !== undefined) terminal.talk(`\n${strong(heading)}\n`)
			if (question.when?.(answers) === false) continue
			const usual = question.usual?.(answers)
			for (let offered = given[name]; ; offered = undefined) {
				if (offered === undefined) {
					say(`${label}: ${forWhat}${example === usual ? "" : `; as in ${example}`}`, {
						first: [label, strong],
					})
					terminal.talk(usual === undefined ? "> " : `[${usual === "" ? "none" : usual}] > `)
				}
				const typed = offered ?? (await asked.answer())
				const answer = typed.trim() === "" && offered === undefined ? (usual ?? "") : answerOf(typed)
				const problem = judgeAnswer(question, answer, answers, existing)
				if (problem === undefined) {
					answers = { ...answers, [name]: answer }
					break
				}
				const where = offered === undefined ? label : flag
				say(`${where}: ${problem.message}`, { indent: 2, first: [where, bad] })
				say(`fix: ${problem.fix}`, { indent: 2 })
			}
		}
	} catch (error) {
		if (!signal.aborted) throw error
		const { exitCode } = signal.reason as OperatorError
		throw new OperatorError("stopped: nothing was written", {
			exitCode,
			cause: signal.reason,
			hint: `comfyume init${flagsOf(answers)}`,
		})
	} finally {
		asked.close()
	}
	return answers
}

/** The answers so far as options: none has to be given twice. */
const flagsOf = (answers: Answers) =>
	questions
		.flatMap(({ name, flag }) => {
			const answer = answers[name]
			return answer === undefined ? [] : [` ${flag} ${answer === "" ? "none" : quoteForShell(answer)}`]
		})
		.join("")

async function readExisting(path: string): Promise<Existing | undefined> {
	try {
		return { path, text: await readFile(path, "utf8") }
	} catch (error) {
		if (codeOf(error) === "ENOENT") return undefined
		throw new OperatorError(systemError(error, `reading ${path}`).message, {
			exitCode: exitCodes.usage,
			hint: "comfyume init --output FILE",
		})
	}
}

function requireRight({ path, text }: Existing): void {
	const [problem] = problemsOf(text, path)
	if (problem === undefined) return
	throw new OperatorError(`${path}:${problem.line}:${problem.column}: ${problem.path} ${problem.message}`, {
		exitCode: exitCodes.usage,
		hint: `comfyume config check --config ${quoteForShell(path)}`,
	})
}

async function requireWritable(directory: string): Promise<void> {
	try {
		await access(directory, constants.W_OK)
	} catch (error) {
		throw new OperatorError(systemError(error, `writing to ${directory}`).message, {
			exitCode: exitCodes.usage,
			hint:
				codeOf(error) === "ENOENT" ? `mkdir -p ${quoteForShell(directory)}` : "comfyume init --output FILE",
		})
	}
}

/** As a whole or not at all, and never over what somebody else has put there meanwhile. */
async function writeNew(path: string, text: string, id: string): Promise<void> {
	const partial = `${path}.${id}.partial`
	try {
		const handle = await open(partial, "wx", 0o644)
		try {
			await handle.writeFile(text)
			await handle.sync()
		} finally {
			await handle.close()
		}
		await link(partial, path)
	} catch (error) {
		if (codeOf(error) === "EEXIST")
			throw new OperatorError(`${path} is there already, and is never overwritten`, {
				exitCode: exitCodes.refusedByGuard,
				hint: "comfyume config check",
			})
		throw systemError(error, `writing ${path}`)
	} finally {
		await rm(partial, { force: true })
	}
	await syncPath(dirname(path))
}

async function tellWhatIsNext(
	{ terminal, variables, workingDirectory }: Surroundings,
	path: string,
	{ environment, before }: { environment: Environment; before: string | undefined },
): Promise<void> {
	const secretsFile = join(dirname(path), "secrets.env")
	const hasSecrets = await access(secretsFile).then(
		() => true,
		() => false,
	)
	const isFound = findConfiguration({ variables, workingDirectory }) === path
	const where = isFound ? "" : ` --config ${quoteForShell(path)}`
	const named = ` --env ${environment.name}${where}`
	const needed = secretsNeededBy(environment)
	const [host] = environment.hosts
	const say = sayTo(terminal)
	if (before !== undefined && isFound) say(`note: until now, ${before} counted here`)
	if (environment.share === undefined && environment.objectStore === undefined)
		say("note: with neither share nor R2 there is nowhere to back up to")
	if (environment.backups.recipients.length === 0)
		say("note: without an age public key, backups of keys and passwords lie in the clear")
	if (needed.length > 0) say(`secrets it needs, as NAME=value lines in ${secretsFile}:`)
	for (const { name, forWhat } of needed) say(`${name}: ${forWhat}`, { indent: 2 })
	// Commands stay on one line, to be copied.
	const next = [
		...(needed.length === 0 || hasSecrets ? [] : [`install -m 600 /dev/null ${quoteForShell(secretsFile)}`]),
		`comfyume config check${where}`,
		`comfyume host trust ${host?.name} SHA256:…${where}   # as its own console shows it`,
		`comfyume doctor${named}`,
		`comfyume restore${named} --dry-run`,
		`comfyume backup${named} --dry-run   # where the server runs already`,
	]
	terminal.talk(`next:\n${next.map((line) => `  ${line}\n`).join("")}`)
}

/** Says a paragraph in the terminal's width. `first`: the words it begins with, and their color. */
const sayTo =
	({ talk, columns }: Surroundings["terminal"]) =>
	(
		text: string,
		{ indent = 0, first }: { indent?: number; first?: readonly [string, (text: string) => string] } = {},
	) => {
		const margin = " ".repeat(indent)
		for (const [index, line] of wrapText(text, columns - indent, "").entries()) {
			const isFirst = index === 0 && first !== undefined && line.startsWith(first[0])
			talk(`${margin}${isFirst ? `${first[1](first[0])}${line.slice(first[0].length)}` : line}\n`)
		}
	}
