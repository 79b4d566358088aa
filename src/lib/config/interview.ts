// Answers to the questions of a first configuration, each held against the schema of comfyume.yaml as it is given.
import { isMap, parseDocument } from "yaml"
import { exitCodes, OperatorError } from "../errors.ts"
import { problemsOf } from "./configuration.ts"
import { bucketQuestions, draftConfiguration } from "./draft.ts"
import type { Problem } from "./problems.ts"
import { type Answers, type Question, questions } from "./questions.ts"

/** What is wrong with an answer, and what to answer instead. */
export type AnswerProblem = Pick<Problem, "message" | "fix">

/** A configuration that is there already, to which an environment is to be added. */
export type Existing = { path: string; text: string }

/**
 * Holds one answer against the configuration's own schema and rules, as if all else were right.
 * @param before the answers that were given before it
 * @returns the first thing that is wrong, or undefined
 */
export function judgeAnswer(
	{ name, example, optional }: Question,
	answer: string,
	before: Answers,
	existing?: Existing,
): AnswerProblem | undefined {
	if (answer === "")
		return optional === true ? undefined : { message: "needs an answer", fix: `as in ${example}` }
	if (/\p{Cc}/u.test(answer))
		return { message: "holds a key that is no letter, as an arrow is", fix: "type it anew" }
	if (name === "environment" && existing !== undefined && hasEnvironment(existing, answer))
		return {
			message: `${answer} stands in ${existing.path} already`,
			fix: "choose another name, or change it there",
		}
	if (name === "otherJurisdiction") {
		const strange = answer
			.split(",")
			.map((part) => part.trim())
			.find((part) => part !== "" && !bucketWords.includes(part))
		if (strange !== undefined)
			return { message: `${strange} is none of the buckets`, fix: `write some of: ${bucketWords.join(", ")}` }
	}
	const answers = { ...placeholders, ...before, [name]: answer }
	const [problem] = problemsOf(textWith(answers, existing), existing?.path ?? "comfyume.yaml")
	return problem
}

/**
 * Everything that is said by options, completed by what is usual.
 * @throws {OperatorError} (2) that names every necessary answer that is missing, and every one that is wrong, at once
 */
export function completeAnswers(given: Answers, existing?: Existing): Answers {
	const wrong: string[] = []
	const missing: Question[] = []
	let answers: Answers = {}
	for (const question of questions) {
		const { name, flag, when, usual } = question
		if (when?.(answers) === false) {
			if (given[name] !== undefined) wrong.push(`${flag} belongs to an answer that is none`)
			continue
		}
		const answer = given[name] ?? usual?.(answers)
		if (answer === undefined) {
			missing.push(question)
			continue
		}
		const problem = judgeAnswer(question, answer, answers, existing)
		if (problem === undefined) answers = { ...answers, [name]: answer }
		else wrong.push(`${flag}: ${problem.message} (${problem.fix})`)
	}
	if (missing.length === 0 && wrong.length === 0) return answers
	const lacking = missing.map(({ flag, example }) => `${flag} ${example}`)
	throw new OperatorError(
		[
			...wrong,
			...(lacking.length === 0 ? [] : [`${missing.map(({ flag }) => flag).join(", ")} must be said`]),
		].join("; "),
		{
			exitCode: exitCodes.usage,
			hint: lacking.length === 0 ? "comfyume init --help" : `add ${lacking.join(" ")}`,
		},
	)
}

/** Whether there is an environment of this name already. */
function hasEnvironment({ text }: Existing, name: string): boolean {
	return parseDocument(text, { version: "1.2", merge: true }).hasIn(["environments", name])
}

/** The file that the answers come to: a new one, or the existing one with the environment added. Pure. */
export function textWith(answers: Answers, existing: Existing | undefined): string {
	if (existing === undefined) return draftConfiguration(answers)
	const document = parseDocument(existing.text, { version: "1.2", merge: true })
	const environment = parseDocument(draftConfiguration(answers), { version: "1.2" }).getIn(
		["environments"],
		true,
	)
	const environments = document.get("environments", true)
	if (isMap(environments) && isMap(environment)) environments.items.push(...environment.items)
	return document.toString({ lineWidth: 0 })
}

const bucketWords = Object.keys(bucketQuestions)

// An environment that is right, so that what is said of it can only be the answer's fault.
const placeholders: Answers = {
	environment: "to-be-named",
	domain: "to-be-named.example.test",
	role: "app",
	host: "to-be-named",
	address: "203.0.113.10",
	port: "22",
	user: "root",
	scratchPath: "/mnt/scratch",
	cacheBucket: "to-be-named",
	platformUser: "dev",
	projectRemote: "https://github.com/example/project.git",
	projectBranch: "main",
	projectPath: "/home/dev/comfyume-v1",
	scriptsRemote: "https://github.com/example/scripts.git",
	scriptsBranch: "main",
	scriptsPath: "/home/dev/comfyume-scripts",
}
