// What all commands that run a plan share: their common options, and the way from options to an exit code.
import { hostname } from "node:os"
import { labelOf } from "../artifacts/source.ts"
import type { LoadedConfiguration } from "../config/configuration.ts"
import type { SecretName, Secrets } from "../config/secrets.ts"
import { type ExitCode, exitCodes, messageOf, OperatorError } from "../errors.ts"
import { localHost } from "../host/local.ts"
import { lockHost } from "../host/lock.ts"
import { type Event, eventsVersion, type Reporter } from "../plan/events.ts"
import { chooseReporter } from "../plan/reporters/choose.ts"
import { runPlan } from "../plan/run.ts"
import type { Plan } from "../plan/step.ts"
import { redact, type Secret } from "../secret.ts"
import { askApi, askClient, type Twin } from "../tailscale/tailnet.ts"
import { confirmByTyping } from "../ui/prompts.ts"
import type { CommandRun, Surroundings } from "../ui/surroundings.ts"
import { clearWork, type StepContext } from "./context.ts"
import { byItsTimer, type Notifier, openNotifier } from "./notify.ts"
import { chooseTarget, type OpenOptions, openHere, type Target } from "./open.ts"
import { openRunLog } from "./run-log.ts"

/** Flags and descriptions, as the command files declare them. */
export const commonOptions: readonly (readonly [flags: string, description: string])[] = [
	["--env <name>", "the environment (else $COMFYUME_ENV, else the host's own /etc/comfyume/environment)"],
	["--host <name>", "which host of the environment, where it has several"],
	["--here", "this machine is the host, although it doesn't know it yet"],
	["--config <file>", "the configuration (else $COMFYUME_CONFIG, comfyume.yaml upwards, /etc/comfyume)"],
	["--secrets <file>", "the file of secrets (else $COMFYUME_SECRETS, secrets.env beside the configuration)"],
	["--dry-run", "look, and say what would be done; over SSH only comfyume itself is put on the host"],
	["--json", "one event per line on stdout"],
	["--quiet", "only what went wrong; silent when all is well"],
	["--verbose", "also each check, and what it found"],
]

export type CommonOptions = {
	env?: string
	host?: string
	here?: boolean
	config?: string
	secrets?: string
	dryRun?: boolean
	json?: boolean
	quiet?: boolean
	verbose?: boolean
	from?: NonNullable<OpenOptions["from"]>
	hostFingerprint?: string
	yes?: boolean
	notify?: boolean
}

export type PlanCommand = {
	command: string
	/** What a run with --notify is called to those who are told of it: `backup`, `status`, … */
	task?: string
	options: CommonOptions
	/** The command's own options as words, for the same command on a host elsewhere. */
	argv: readonly string[]
	/** Ask whether another machine is online with the host's Tailscale identity. */
	needsTwin?: boolean
	/** Secrets that only this command needs on the host, as AGE_IDENTITY to open encrypted snapshots. */
	alsoSends?: readonly SecretName[]
	/** What became of it is kept on the host, in /var/log/comfyume. */
	keepsLog?: boolean
	/** Nothing is ever applied: no lock is taken, and the host and the stores are opened so that a write throws. */
	checksOnly?: boolean
	/**
	 * The places of snapshots are not opened: the work is about models alone, or about the stack; or the plan opens them
	 * itself (`openSources`) when it has mounted the share.
	 */
	modelsOnly?: boolean
	/** It must go on whatever else runs: an emergency can't wait for the lock. */
	withoutLock?: boolean
	/** Files that the operator named on his own machine, for a host elsewhere. At most 4 MiB in all. */
	files?: () => Promise<Record<string, string>>
	/** Called when the host is elsewhere; throws for options that only work here. */
	elsewhere?: () => void
	/** Takes the documents that the run makes, on the machine where the operator sits; they aren't shown then. */
	onDocument?: (text: string) => Promise<void>
	/** The environment that is only changed after its name was typed; with a question of its own, each of them. */
	confirms?: string | { question: string }
	/** `files` as this run has them: sent by a client, or read here. */
	plan: (
		context: StepContext,
		facts: {
			twin: Twin
			files: Readonly<Record<string, string>>
			/** As it was read, and what it was read from. */
			configuration: LoadedConfiguration
			secrets: Secrets
			/** Nothing is applied: what this run would bring isn't there afterwards. */
			dryRun: boolean
			/** From now on none of these is shown, whoever says them. */
			hide: (secrets: Iterable<Secret>) => void
		},
	) => Promise<Plan>
}

/**
 * `a,b` -> ["a", "b"]; a second `--only` adds to the first.
 * @throws {OperatorError} (2) when nothing is named: an empty variable in a script must not come to mean everything
 */
export function names(text: string, before: readonly string[] = []): string[] {
	const named = text
		.split(",")
		.map((name) => name.trim())
		.filter((name) => name !== "")
	if (named.length === 0)
		throw new OperatorError("an option that takes names was given none", {
			exitCode: exitCodes.usage,
			hint: "leave the option out, or name something: --only home,env-file",
		})
	return [...before, ...named]
}

/** The reverse of `names`: an option that names things, as words of a command line. None for nothing named. */
export const wordsOfNames = (flag: string, named: readonly string[] | undefined): string[] =>
	named === undefined || named.length === 0 ? [] : [flag, named.join(",")]

/** Runs one command's plan, here or on the host it is about, and says how it ended. */
export async function runCommand(run: CommandRun, spec: PlanCommand): Promise<void> {
	const { surroundings, finish } = run
	const { options } = spec
	const opening: OpenOptions = {
		...options,
		dryRun: options.dryRun === true,
		...(spec.modelsOnly === true && { modelsOnly: true }),
	}
	const asEvents = options.json === true || surroundings.session !== undefined
	const secrets: Secret[] = []
	const chosen = await chooseReporter(surroundings.terminal, { ...options, json: asEvents })
	let notifier = notifierFor(surroundings, spec, opening)
	const documents: string[] = []
	const keep = surroundings.session === undefined && spec.onDocument !== undefined
	const shown = keep ? withoutDocuments(chosen, documents) : chosen
	/** Those who hear of the run beside the one that shows it. */
	const listeners = new Set<Reporter>()
	const reporter = redacting(shown, secrets, () => [
		...(notifier === undefined ? [] : [notifier.reporter]),
		...listeners,
	])
	let failure: unknown
	let exitCode: ExitCode = exitCodes.bug
	try {
		const target = await chooseTarget(surroundings, opening)
		// On the machine that does the work: the one that directs it may vanish in the middle.
		if (!target.here) notifier = undefined
		notifier?.know(target)
		secrets.push(...target.secrets.all())
		const hide = (more: Iterable<Secret>) => void secrets.push(...more)
		const begin = () => notifier?.begin()
		exitCode = await runTarget(surroundings, spec, {
			...{ target, opening, reporter, hide, begin },
			listen: (listener) => void listeners.add(listener),
		})
		for (const text of documents) await spec.onDocument?.(text)
	} catch (error) {
		exitCode = exitCodeOf(error, surroundings)
		// Whoever reads events gets the reason as one: on the other side of a connection there is no stderr to read.
		if (asEvents) reportError(error, reporter, surroundings)
		else failure = withoutSecrets(error, secrets)
	} finally {
		await reporter.close()
	}
	await notifier?.end(exitCode, failure)
	if (failure !== undefined) throw failure
	finish(exitCode)
}

/** @throws {OperatorError} (2) where a part of the work would be told as the whole */
function notifierFor(
	surroundings: Surroundings,
	{ task, options, argv }: PlanCommand,
	opening: OpenOptions,
): Notifier | undefined {
	if (options.notify !== true || task === undefined || opening.dryRun) return undefined
	if (["--only", "--skip"].some((flag) => argv.includes(flag)))
		throw new OperatorError("--notify tells of the whole task, and --only and --skip do a part of it", {
			exitCode: exitCodes.usage,
			hint: "leave one of them out",
		})
	return openNotifier(surroundings, opening, task)
}

async function runTarget(
	surroundings: Surroundings,
	spec: PlanCommand,
	run: {
		target: Target
		opening: OpenOptions
		reporter: Reporter
		hide: (secrets: Iterable<Secret>) => void
		/** Called when the work begins: nothing else has the lock. */
		begin: () => void
		/** From now on this one hears of the run too. */
		listen: (listener: Reporter) => void
	},
): Promise<ExitCode> {
	const { target, opening, reporter, hide, begin, listen } = run
	const { environment } = target
	if (!target.here) spec.elsewhere?.()
	const { confirms } = spec
	if (
		(confirms === environment.name || typeof confirms === "object") &&
		!opening.dryRun &&
		spec.options.yes !== true &&
		target.sent === undefined
	)
		await confirmByTyping(surroundings, {
			question:
				typeof confirms === "object"
					? confirms.question
					: `This changes ${target.hostConfiguration.name} of ${environment.name}.`,
			word: environment.name,
			flag: "--yes",
		})
	const files = target.sent === undefined ? ((await spec.files?.()) ?? {}) : (target.sent.files ?? {})
	const checksOnly = spec.checksOnly === true
	const twin = spec.needsTwin === true ? await findTwin(surroundings, target) : notAsked
	if (!target.here) {
		const { runElsewhere } = await import("./remote.ts")
		return runElsewhere(surroundings, target, {
			argv: [
				...[spec.command, ...spec.argv],
				...(opening.dryRun ? ["--dry-run"] : []),
				...(spec.options.notify === true ? ["--notify"] : []),
			],
			alsoSends: spec.alsoSends ?? [],
			twin,
			files,
			reporter,
			...(spec.options.hostFingerprint === undefined
				? {}
				: { hostFingerprint: spec.options.hostFingerprint }),
		})
	}
	const writes = !opening.dryRun && !checksOnly
	await using opened = await openHere(surroundings, target, { ...opening, dryRun: !writes })
	const alone = writes && spec.withoutLock !== true
	const purpose = spec.options.notify === true ? `${spec.command} ${byItsTimer}` : spec.command
	await using _lock = alone ? await lockHost(opened.context.host, { name: "comfyume", purpose }) : undefined
	begin()
	if (alone) await clearWork(opened.context.host)
	for (const { text } of troubles(opened.context)) note(reporter, surroundings, text)
	const plan = await spec.plan(opened.context, {
		...{ twin, files, hide },
		...{ configuration: target.configuration, secrets: target.secrets, dryRun: !writes },
	})
	const log = spec.keepsLog === true && writes ? openRunLog(opened.context, spec.command) : undefined
	if (log !== undefined) listen(log.reporter)
	const { exitCode } = await runPlan(plan, {
		dryRun: opening.dryRun,
		checksOnly,
		now: surroundings.now,
		signal: surroundings.signal,
		reporter,
	})
	const unwritten = await log?.end()
	if (unwritten !== undefined) note(reporter, surroundings, unwritten)
	return exitCode
}

/** What is to be said of places of snapshots that can't be used. */
export const troubles = ({ sources }: Pick<StepContext, "sources">) =>
	sources.flatMap((source) =>
		source.trouble === undefined
			? []
			: [{ level: "info" as const, text: `${labelOf(source)} can't be used: ${source.trouble.message}` }],
	)

function note(reporter: Reporter, { now }: Surroundings, text: string): void {
	const at = now().toISOString()
	reporter.event({ version: eventsVersion, at, event: "note", level: "info", text })
}

const notAsked: Twin = { state: "unknown", because: "nobody was asked" }

/** Asked where the tailnet can be seen: at the operator's machine, never on the fresh host. */
async function findTwin(surroundings: Surroundings, target: Target): Promise<Twin> {
	const { hostConfiguration, secrets, sent } = target
	if (sent !== undefined) return sent.twin ?? notAsked
	const address = hostConfiguration.tailscaleAddress
	if (address === undefined) return notAsked
	const { now, signal, variables } = surroundings
	const key = secrets.find("TAILSCALE_API_KEY")
	if (key !== undefined) return askApi(key, address, { now, signal })
	await using operator = localHost({ name: hostname(), environment: variables, signal })
	return askClient(operator, address)
}

/** What a signal broke off fails in many ways; the one thing to say is that it was the signal. */
function knownError(error: unknown, { signal }: Surroundings): OperatorError | undefined {
	const stopped = signal.aborted && signal.reason instanceof OperatorError ? signal.reason : undefined
	return stopped ?? (error instanceof OperatorError ? error : undefined)
}

const exitCodeOf = (error: unknown, surroundings: Surroundings): ExitCode =>
	knownError(error, surroundings)?.exitCode ?? exitCodes.bug

function reportError(error: unknown, reporter: Reporter, surroundings: Surroundings): void {
	const known = knownError(error, surroundings)
	reporter.event({
		version: eventsVersion,
		at: surroundings.now().toISOString(),
		event: "error",
		message: messageOf(known ?? error),
		exitCode: exitCodeOf(error, surroundings),
		...(known?.hint === undefined ? {} : { hint: known.hint }),
	})
}

/** Tools and servers may repeat what they were given. Whatever they say, no secret of this run is shown. */
function redacting(
	reporter: Reporter,
	secrets: readonly Secret[],
	others: () => readonly Reporter[],
): Reporter {
	const clean = (value: unknown): unknown => {
		if (typeof value === "string") return redact(value, secrets)
		if (Array.isArray(value)) return value.map(clean)
		if (typeof value === "object" && value !== null)
			return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, clean(inner)]))
		return value
	}
	return {
		event: (event) => {
			const cleaned = clean(event) as Event
			reporter.event(cleaned)
			for (const other of others()) other.event(cleaned)
		},
		close: () => reporter.close(),
	}
}

function withoutDocuments(reporter: Reporter, documents: string[]): Reporter {
	return {
		event: (event) => (event.event === "document" ? void documents.push(event.text) : reporter.event(event)),
		close: () => reporter.close(),
	}
}

function withoutSecrets(error: unknown, secrets: readonly Secret[]): unknown {
	if (error instanceof OperatorError) {
		const { message, hint, exitCode, cause } = error
		return new OperatorError(redact(message, secrets), {
			exitCode,
			cause,
			...(hint === undefined ? {} : { hint: redact(hint, secrets) }),
		})
	}
	if (!(error instanceof Error)) return error
	error.message = redact(error.message, secrets)
	if (error.stack !== undefined) error.stack = redact(error.stack, secrets)
	return error
}
