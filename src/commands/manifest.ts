// comfyume manifest: what models must be there. Checked, measured from a trusted copy, exported for sha256sum.
import { resolve } from "node:path"
import { Command, Option } from "commander"
import { exitCodes } from "../lib/errors.ts"
import { parseManifest, pathWarning, renderSha256sums, unknownsOf } from "../lib/models/manifest.ts"
import { measureModels } from "../lib/models/measure.ts"
import { readManifest, readManifestText } from "../lib/models/read-manifest.ts"
import { printable } from "../lib/ui/format.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun } from "../lib/ui/surroundings.ts"

type ManifestOption = { manifest?: string }
type CreateOptions = { models: string; blocks: boolean }

const reading = exitStatusHelp([exitCodes.done, exitCodes.usage])
const measuring = exitStatusHelp([0, 2, 3, 129, 130, 143])

export function create(run: CommandRun): Command {
	const command = new Command("manifest")
		.summary("check, measure and export the manifest of models")
		.description("The manifest says which models must be there, with size and digest where they are known.")
		.addHelpText("after", measuring)
	const manifest = ["--manifest <file>", "the manifest (else the one that comes with comfyume)"] as const
	command
		.command("check")
		.description("every problem at once, each with its line; then what is not known")
		.option(...manifest)
		.addHelpText("after", reading)
		.action((options: ManifestOption) => check(run, options))
	command
		.command("create")
		.description("measures the models of a trusted copy, and prints their manifest")
		.requiredOption("--models <directory>", "the directory that holds checkpoints, loras, vae, …")
		.option(
			"--no-blocks",
			"without the digest of every 16 MiB: shorter, but healing then fetches whole models",
		)
		.addHelpText("after", measuring)
		.action((options: CreateOptions) => createManifest(run, options))
	command
		.command("export")
		.description("the digests that are known, for another program")
		.option(...manifest)
		.addOption(new Option("--format <format>", "for which").choices(["sha256sums"]).makeOptionMandatory())
		.addHelpText("after", reading)
		.action((options: ManifestOption) => exportManifest(run, options))
	return command
}

async function check({ surroundings, finish }: CommandRun, options: ManifestOption): Promise<void> {
	const { terminal } = surroundings
	const { file, text } = await readManifestText(surroundings, options.manifest)
	const parsed = parseManifest(text)
	if (parsed.problems !== undefined) {
		for (const { line, path, message } of parsed.problems)
			terminal.out(`${file}:${line}${path === "" ? "" : ` ${printable(path)}`}\n  ${printable(message)}\n`)
		terminal.talk(`${count(parsed.problems.length, "problem")}\n`)
		return finish(exitCodes.usage)
	}
	for (const { path } of parsed.manifest.models) {
		const warning = pathWarning(path)
		if (warning !== undefined) terminal.talk(`warning: ${path}: ${warning}\n`)
	}
	for (const unknown of unknownsOf(parsed.manifest)) terminal.talk(`note: ${unknown}\n`)
	terminal.out(`manifest is right: ${count(parsed.manifest.models.length, "model")}\n`)
}

async function createManifest({ surroundings, finish }: CommandRun, options: CreateOptions): Promise<void> {
	const { terminal, signal, workingDirectory } = surroundings
	const { text, models, warnings, leftOut } = await measureModels(resolve(workingDirectory, options.models), {
		blocks: options.blocks,
		signal,
		onFile: (path) => terminal.talk(`reading ${printable(path)}\n`),
	})
	for (const { path, because, failed } of leftOut)
		terminal.talk(`${failed ? "failed" : "note"}: left out ${printable(path)}: ${printable(because)}\n`)
	for (const { path, because } of warnings) terminal.talk(`warning: ${printable(path)}: ${because}\n`)
	terminal.out(text)
	if (models === 0) terminal.talk("failed: there is no model\n")
	if (models === 0 || leftOut.some(({ failed }) => failed)) finish(exitCodes.incomplete)
}

async function exportManifest({ surroundings }: CommandRun, options: ManifestOption): Promise<void> {
	const { terminal } = surroundings
	const manifest = await readManifest(surroundings, options.manifest)
	for (const { path, sha256, figures } of manifest.models) {
		if (sha256 === undefined) terminal.talk(`note: ${path}: its digest is not known\n`)
		else if (figures?.verified === false)
			terminal.talk(`note: ${path}: its digest was never verified (${printable(figures.from)})\n`)
	}
	terminal.out(renderSha256sums(manifest))
}

const count = (number: number, what: string) => `${number} ${what}${number === 1 ? "" : "s"}`
