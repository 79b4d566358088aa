// comfyume certificates: the workshop's certificate is issued, bought ones are installed, and what nginx serves is right.
import { readFile } from "node:fs/promises"
import { resolve } from "node:path"
import { Command } from "commander"
import { exitCodes, OperatorError, systemError } from "../lib/errors.ts"
import type { Plan, Step } from "../lib/plan/step.ts"
import {
	boughtInstalled,
	type CertificateWork,
	certbotInstalled,
	certificateInstalled,
	certificateIssued,
	certificateRight,
	certificateServed,
	certificateToStartWith,
	renewDays,
} from "../lib/steps/certificates.ts"
import type { StepContext } from "../lib/steps/context.ts"
import { type CommonOptions, commonOptions, runCommand } from "../lib/steps/run-command.ts"
import { openStack } from "../lib/steps/stack.ts"
import { certificatesTimer } from "../lib/steps/timer-files.ts"
import { timerStep } from "../lib/steps/timers.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type IssueOptions = CommonOptions & { force?: boolean }
type InstallOptions = CommonOptions & { cert: string; key: string; chain?: string }

const endings = exitStatusHelp([0, 1, 2, 3, 4, 5, 7, 8, 129, 130, 143])

export function create(run: CommandRun): Command {
	const sub = (name: string) =>
		commonOptions
			.filter(([flags]) => name !== "status" || flags !== "--dry-run")
			.reduce((command, [flags, description]) => command.option(flags, description), new Command(name))
	const status = sub("status")
		.description(
			"says whether the certificate is right, for how long yet, and whether nginx serves it; 3 when not",
		)
		.addHelpText("after", exitStatusHelp([0, 1, 2, 3, 4, 129, 130, 143]))
		.action((options: CommonOptions) =>
			planned(run, "status", options, {
				checksOnly: true,
				steps: (work) => [certificateRight(work), certificateServed(work, [])],
			}),
		)
	const issue = sub("issue")
		.description(
			"asks the ACME authority for a certificate, installs it, has nginx serve it, and sees to renewals. Before the first one a self-signed one lets nginx start",
		)
		.option("--force", "a new one, although the old one is still good")
		.option("--yes", "answer the question before production with yes")
		.addHelpText("after", endings)
		.action((options: IssueOptions) => planned(run, "issue", options, { steps: acmeSteps(options) }))
	const renew = sub("renew")
		.description(`the same, for a timer: asks for a new one when ${renewDays} days or fewer are left`)
		.option("--force", "a new one, although the old one is still good")
		.addHelpText("after", endings)
		.action((options: IssueOptions) =>
			planned(run, "renew", options, { steps: acmeSteps(options), asks: false }),
		)
	const install = sub("install")
		.description(
			"installs a certificate that was bought, after proving that it fits the key, the name and the day",
		)
		.requiredOption("--cert <file>", "the certificate in PEM, or the whole chain, the certificate first")
		.requiredOption("--key <file>", "its private key in PEM; over SSH it goes on stdin")
		.option("--chain <file>", "those who vouch for it, where they are not in the file of --cert")
		.option("--yes", "answer the question before production with yes")
		.addHelpText("after", endings)
		.action((options: InstallOptions) =>
			planned(run, "install", options, {
				files: () => readBought(run.surroundings.workingDirectory, options),
				steps: (work, files) => [
					boughtInstalled(work, { certificate: files["certificate"] ?? "", key: files["key"] ?? "" }),
					certificateServed(work, ["installed"]),
				],
			}),
		)
	return new Command("certificates")
		.summary("issue, renew, install and check the workshop's certificate")
		.description(
			"The certificate that nginx serves. stack.certificates in comfyume.yaml says where it comes from.",
		)
		.addHelpText("after", endings)
		.addCommand(status)
		.addCommand(issue)
		.addCommand(renew)
		.addCommand(install)
}

type Kind = {
	steps: (work: CertificateWork, files: Readonly<Record<string, string>>) => Step[]
	checksOnly?: boolean
	/** Whether production's name has to be typed. A timer has nobody to ask. */
	asks?: boolean
	files?: () => Promise<Record<string, string>>
}

function planned(run: CommandRun, verb: string, options: IssueOptions & Partial<InstallOptions>, kind: Kind) {
	const { asks = true, checksOnly = false, files } = kind
	return runCommand(run, {
		command: "certificates",
		options,
		// The files' texts go along; their names are the other machine's.
		argv: [
			verb,
			...(options.force === true ? ["--force"] : []),
			...(verb === "install" ? ["--cert", "sent", "--key", "sent"] : []),
		],
		modelsOnly: true,
		checksOnly,
		...(asks && !checksOnly ? { confirms: "production" } : {}),
		...(files === undefined ? {} : { files }),
		plan: async (context, facts) => {
			const { stack, docker } = await openStack(context, facts.hide)
			return planOf(context, verb, kind.steps({ context, stack, docker }, facts.files))
		},
	})
}

const planOf = (context: StepContext, verb: string, steps: Step[]): Plan => ({
	command: `certificates ${verb}`,
	environment: context.environment.name,
	host: context.hostConfiguration.name,
	place: context.place,
	steps,
})

const acmeSteps =
	({ force = false }: IssueOptions) =>
	(work: CertificateWork): Step[] => {
		if (work.stack.configuration.certificates.source !== "acme")
			throw new OperatorError(`certificates of ${work.stack.environment} are bought, by the configuration`, {
				exitCode: exitCodes.usage,
				hint: "set stack.certificates.source to acme, or: comfyume certificates install --cert FILE --key FILE",
			})
		return [
			certificateToStartWith(work),
			certbotInstalled(work),
			certificateIssued(work, { force }),
			certificateInstalled(work),
			certificateServed(work, ["installed"]),
			timerStep(work.context, certificatesTimer, ["installed"]),
		]
	}

async function readBought(
	workingDirectory: string,
	{ cert, key, chain }: InstallOptions,
): Promise<Record<string, string>> {
	const read = async (file: string) => {
		const path = resolve(workingDirectory, file)
		try {
			return await readFile(path, "utf8")
		} catch (error) {
			throw systemError(error, `reading ${path}`)
		}
	}
	const [certificate, keyText, more] = await Promise.all([
		read(cert),
		read(key),
		chain === undefined ? "" : read(chain),
	])
	return { certificate: more === "" ? certificate : `${certificate.trimEnd()}\n${more}`, key: keyText }
}
