// argv -> command -> exit code. The only owner of signals and of process.exitCode.
import { readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import type { Command, CommanderError } from "commander"
import { codeOf, type ExitCode, exitCodes, messageOf, OperatorError } from "./lib/errors.ts"
import type { CommandRun, Surroundings } from "./lib/ui/surroundings.ts"

// Commands load when they are called: `--help` and `--version` need neither ssh2 nor the AWS SDK.
type Load = () => Promise<{ create: (run: CommandRun) => Command }>
const commands: Readonly<
	Record<
		string,
		{
			summary: string
			load: Load
			/** Commands under it that have a file of their own. */
			under?: readonly Load[]
		}
	>
> = {
	init: {
		summary: "write a first comfyume.yaml, by asking",
		load: () => import("./commands/init.ts"),
	},
	restore: {
		summary: "bring a lost server back from its backups",
		load: () => import("./commands/restore.ts"),
	},
	backup: {
		summary: "back up the server, and prove that the backups can be restored",
		load: () => import("./commands/backup.ts"),
		under: [
			() => import("./commands/backup-status.ts"),
			() => import("./commands/backup-retention.ts"),
			() => import("./commands/backup-drill.ts"),
			() => import("./commands/backup-report.ts"),
		],
	},
	timers: {
		summary: "have backups come by themselves, and see whether they did",
		load: () => import("./commands/timers.ts"),
	},
	"disk-check": {
		summary: "say how full the file systems are, and whether there is room",
		load: () => import("./commands/disk-check.ts"),
	},
	"verify-models": {
		summary: "say which models are there, whole, and what they should be",
		load: () => import("./commands/verify-models.ts"),
	},
	manifest: {
		summary: "check, measure and export the manifest of models",
		load: () => import("./commands/manifest.ts"),
	},
	verify: {
		summary: "say line by line whether a server is really back",
		load: () => import("./commands/verify.ts"),
	},
	start: {
		summary: "start the stack, and wait until all of it is healthy",
		load: () => import("./commands/start.ts"),
	},
	stop: {
		summary: "stop the stack, or some of it",
		load: () => import("./commands/stop.ts"),
	},
	restart: {
		summary: "make containers anew, and wait until they are healthy",
		load: () => import("./commands/restart.ts"),
	},
	status: {
		summary: "say what runs, what is missing, and whether the door opens",
		load: () => import("./commands/status.ts"),
	},
	logs: {
		summary: "show what containers say",
		load: () => import("./commands/logs.ts"),
	},
	"generate-users": {
		summary: "write users, passwords, compose and nginx files of the stack",
		load: () => import("./commands/generate-users.ts"),
	},
	env: {
		summary: "check and write the stack's env file",
		load: () => import("./commands/env.ts"),
	},
	certificates: {
		summary: "issue, renew, install and check the workshop's certificate",
		load: () => import("./commands/certificates.ts"),
	},
	doctor: {
		summary: "look whether buckets and share are as they should be",
		load: () => import("./commands/doctor.ts"),
	},
	config: {
		summary: "check and show the configuration",
		load: () => import("./commands/config.ts"),
	},
	secrets: {
		summary: "say which secrets are here, and load them into the keyring",
		load: () => import("./commands/secrets.ts"),
	},
	host: {
		summary: "trust a host's key",
		load: () => import("./commands/host.ts"),
	},
}

const signals = {
	SIGHUP: exitCodes.hungUp,
	SIGINT: exitCodes.interrupted,
	SIGTERM: exitCodes.terminated,
} as const

// Not in any help: how a comfyume elsewhere runs this one. Its frame and its abort come in on stdin.
const sessionOption = "--session"

await main(process.argv.slice(2))

async function main(argv: readonly string[]): Promise<void> {
	// In a clone this is src/cli.ts; in the package and in a release it is dist/cli/cli.js.
	const packageRoot = fileURLToPath(
		new URL(import.meta.url.endsWith(".ts") ? ".." : "../..", import.meta.url),
	)
	// Scripts ask for the version often; loading Commander and opening streams would double the time of an answer.
	if (argv.length === 1 && (argv[0] === "--version" || argv[0] === "-V")) {
		process.stdout.on("error", () => {}).write(`${versionOf(packageRoot)}\n`)
		return
	}
	const controller = new AbortController()
	let stoppedBy: ExitCode | undefined
	for (const [name, exitCode] of Object.entries(signals)) {
		process.on(name, () => {
			// The second signal of an impatient operator doesn't wait for cleaning up.
			if (stoppedBy !== undefined) process.exit(stoppedBy)
			stoppedBy = exitCode
			const hint = "run the same command again: it goes on where this run stopped"
			controller.abort(new OperatorError(`stopped by ${name}`, { exitCode, hint }))
		})
	}
	// A closed pipe (`comfyume … | head`) ends what we say, not what we do.
	for (const stream of [process.stdout, process.stderr]) stream.on("error", () => {})

	let finished: ExitCode = exitCodes.done
	const surroundings: Surroundings = {
		variables: process.env,
		workingDirectory: process.cwd(),
		terminal: {
			out: (text) => void process.stdout.write(text),
			talk: (text) => void process.stderr.write(text),
			interactive: process.stderr.isTTY === true && process.env.TERM !== "dumb",
			columns: process.stderr.columns || 80,
			rows: process.stderr.rows || 24,
			color: process.stderr.isTTY === true && !process.env.NO_COLOR && process.env.TERM !== "dumb",
		},
		stdin: process.stdin,
		now: () => new Date(),
		// Not node:crypto, which every start would pay for.
		randomId: () => crypto.randomUUID().slice(0, 8),
		signal: controller.signal,
		packageRoot,
		version: versionOf(packageRoot),
	}

	try {
		const words = argv.filter((word) => word !== sessionOption)
		if (words.length < argv.length) {
			const { readSession } = await import("./lib/host/session.ts")
			const { payload, aborted } = await readSession(process.stdin)
			surroundings.session = { payload }
			aborted.addEventListener("abort", () => {
				stoppedBy ??= exitCodes.hungUp
				controller.abort(aborted.reason)
			})
		}
		const program = await build(words, {
			surroundings,
			finish: (exitCode) => {
				finished = exitCode
			},
		})
		await program.parseAsync(words, { from: "user" })
	} catch (error) {
		// What a signal broke off fails in many ways; the one thing to say is that it was the signal.
		const { aborted, reason } = controller.signal
		finished = report(aborted && !speaksOf(error, reason) ? reason : error, surroundings, argv)
	}
	process.exitCode = stoppedBy ?? finished
	// What a remote machine or a hung mount keeps open must not keep a finished command alive.
	process.stdin.unref?.()
}

async function build(argv: readonly string[], run: CommandRun): Promise<Command> {
	const [{ Command }, { exitStatusHelp }] = await Promise.all([
		import("commander"),
		import("./lib/ui/help.ts"),
	])
	const program = new Command("comfyume")
		.description("Backs up and restores ComfyUI workshop servers, and proves that it did.")
		.version(run.surroundings.version)
		.exitOverride()
		.configureOutput({
			writeOut: run.surroundings.terminal.out,
			// The help that stands in for a missing command goes here; error lines don't: `report` prints those, with
			// their hint and their exit code.
			writeErr: run.surroundings.terminal.talk,
			outputError: () => {},
		})
		.showSuggestionAfterError()
		.addHelpText("after", exitStatusHelp(Object.values(exitCodes)))
	const words = argv.filter((word) => !word.startsWith("-"))
	// `comfyume help backup` shows what `comfyume backup --help` does.
	const wanted = words[0] === "help" ? words[1] : words[0]
	for (const [name, { summary, load, under = [] }] of Object.entries(commands)) {
		if (name === wanted) {
			const command = (await load()).create(run)
			for (const loadOneUnder of under) command.addCommand((await loadOneUnder()).create(run))
			program.addCommand(inheriting(program, command))
		} else program.command(name).summary(summary).description(summary)
	}
	return program
}

// `addCommand` doesn't hand on what was set on the parent.
function inheriting(parent: Command, child: Command): Command {
	child.copyInheritedSettings(parent)
	for (const grandchild of child.commands) inheriting(child, grandchild as Command)
	return child
}

/** Whether a command has words of its own for the signal that ended it. */
function speaksOf(error: unknown, reason: unknown): boolean {
	return (
		error instanceof OperatorError &&
		reason instanceof OperatorError &&
		error.cause === reason &&
		error.exitCode === reason.exitCode
	)
}

function report(error: unknown, { terminal }: Surroundings, argv: readonly string[]): ExitCode {
	if (isCommanderError(error)) {
		if (error.exitCode === 0) return exitCodes.done
		const message = messageOf(error).replace(/^error: /, "")
		// With no command at all Commander "fails", and has printed its help.
		if (error.code === "commander.help") return exitCodes.usage
		const named = argv.find((word) => !word.startsWith("-")) ?? ""
		const help = named in commands ? `comfyume ${named} --help` : "comfyume --help"
		terminal.talk(`comfyume: ${message}\n  next: ${help}\n`)
		return exitCodes.usage
	}
	if (error instanceof OperatorError) {
		terminal.talk(`comfyume: ${error.message}\n${error.hint === undefined ? "" : `  next: ${error.hint}\n`}`)
		return error.exitCode
	}
	terminal.talk(
		`comfyume: a bug: ${messageOf(error)}\n${error instanceof Error ? `${error.stack ?? ""}\n` : ""}` +
			"  next: report it with the lines above\n",
	)
	return exitCodes.bug
}

// By its code: the class itself would have to be loaded for every start.
function isCommanderError(error: unknown): error is CommanderError {
	return codeOf(error)?.startsWith("commander.") === true
}

function versionOf(packageRoot: string): string {
	const parsed: unknown = JSON.parse(readFileSync(`${packageRoot}package.json`, "utf8"))
	return typeof parsed === "object" && parsed !== null && "version" in parsed
		? String(parsed.version)
		: "unknown"
}
