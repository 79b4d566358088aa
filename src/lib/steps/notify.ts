// Whoever should know is told how a run ended, on the machine that ran it. Three channels, each for itself: one that
// can't be reached costs the run a line of warning and at most ten seconds, and neither its result nor the others'.
import { hostname } from "node:os"
import { readConfigurationFile, readHostOwnEnvironment } from "../config/configuration.ts"
import type { HostConfiguration, NotificationsConfiguration } from "../config/environment.ts"
import { salvageNotifications } from "../config/notifications.ts"
import { loadSecrets, type Secrets } from "../config/secrets.ts"
import { exitCodes, exitMeanings, messageOf, OperatorError } from "../errors.ts"
import { keyringReader } from "../host/keyring.ts"
import { localHost } from "../host/local.ts"
import type { Event, Reporter } from "../plan/events.ts"
import { unfailing } from "../plan/reporters/choose.ts"
import { plainReporter } from "../plan/reporters/plain.ts"
import type { SummaryRow } from "../plan/step.ts"
import { redact } from "../secret.ts"
import type { Surroundings } from "../ui/surroundings.ts"
import { ping, publish } from "./notify-http.ts"
import { writeTextfile } from "./notify-textfile.ts"
import type { OpenOptions, Target } from "./open.ts"

/** The option, as the command files declare it. */
export const notifyOption = [
	"--notify",
	"tell those named under notifications how it ended; for timers",
] as const

/** What of a run is told. */
export type Told = {
	environment: string
	host: string
	/** What the run is to those who are told: `backup`, `status`, `retention`, `drill`. */
	task: string
	exitCode: number
	startedAt: Date
	endedAt: Date
	storedBytes: number
	rows: readonly SummaryRow[]
	/** What the run said, without secrets. */
	transcript: string
}

export type Notifier = {
	/** Takes what the run says, besides the reporter that shows it. */
	reporter: Reporter
	/** Where the run's target, and with it whom to tell, is known. Called on the machine that does the work. */
	know(target: Target): void
	/** The work begins: nothing else has the lock. Doesn't wait. */
	begin(): void
	/** Never throws. @param failure what ended the run before it could say so itself */
	end(exitCode: number, failure: unknown): Promise<void>
}

/** What the holder of a lock says of itself when it was started by a timer. */
export const byItsTimer = "by its timer"

const timeoutMs = 10_000
// Whoever wants it to stop doesn't wait for long, and then it is stopped for good.
const stoppedTimeoutMs = 4000

type Whom = {
	environment: string
	host: string
	notifications: NotificationsConfiguration
	secrets: Secrets
	root: string | undefined
}

export function openNotifier(surroundings: Surroundings, opening: OpenOptions, task: string): Notifier {
	const { now, signal, terminal } = surroundings
	const runId = uuid(surroundings.randomId)
	const startedAt = now()
	const story = listen()
	let whom: Whom | undefined
	let began: Promise<void> = Promise.resolve()

	const limits = () => ({ timeoutMs: signal.aborted ? stoppedTimeoutMs : timeoutMs })
	const attempt = async (channel: string, work: (timeoutMs: number) => Promise<void>): Promise<void> => {
		try {
			const most = limits().timeoutMs
			await within(most + 1000, work(most))
		} catch (error) {
			const said = redact(messageOf(error), whom?.secrets.all() ?? [])
			terminal.talk(`warning: ${channel} could not be told: ${said}\n`)
		}
	}
	const pingWith = (to: Whom, signalled: "start" | "log" | number, body: string) => {
		const { healthchecks } = to.notifications
		if (healthchecks === undefined) return Promise.resolve()
		return attempt("healthchecks", async (most) => {
			const key = to.secrets.need("HEALTHCHECKS_PING_KEY", healthchecks.url)
			await ping({ url: healthchecks.url, key, runId }, { ...to, task }, signalled, body, { timeoutMs: most })
		})
	}

	return {
		reporter: story.reporter,
		know: ({ environment, hostConfiguration, secrets }) => {
			whom = {
				environment: environment.name,
				host: hostConfiguration.name,
				notifications: environment.notifications ?? {},
				secrets,
				root: rootOf(hostConfiguration),
			}
		},
		begin: () => {
			if (whom !== undefined) began = pingWith(whom, "start", "")
		},
		end: async (exitCode, failure) => {
			try {
				const to = whom ?? (await salvage(surroundings, opening))
				if (to === undefined) return
				const text = await story.finish()
				// What a signal broke off fails in many ways; what ended it was the signal.
				const more = failure === undefined ? "" : describe(signal.aborted ? signal.reason : failure)
				const transcript = redact(`${text}${more}`, to.secrets.all())
				const { storedBytes, rows } = story
				const told: Told = {
					...{ environment: to.environment, host: to.host, task, exitCode, startedAt, endedAt: now() },
					...{ storedBytes: storedBytes(), rows: rows(), transcript },
				}
				await began
				// Another timer's run is at work: that is no failure of this one, which comes again.
				if (exitCode === exitCodes.locked && transcript.includes(byItsTimer))
					return await pingWith(to, "log", transcript)
				let before: number | undefined
				const textfile = async () => {
					const { textfiles } = to.notifications
					if (textfiles === undefined) return
					await attempt("the textfile", async () => {
						const root = to.root === undefined ? {} : { root: to.root }
						await using host = localHost({ name: to.host, environment: surroundings.variables, ...root })
						before = await writeTextfile(host, textfiles.directory, told)
					})
				}
				await textfile()
				await Promise.all([
					pingWith(to, exitCode, transcript),
					attempt("ntfy", (most) => tellByNtfy(to, told, before, most)),
				])
			} catch (error) {
				terminal.talk(`warning: nobody could be told how this ended: ${messageOf(error)}\n`)
			}
		},
	}
}

/** A failure each time, and once that it is well again, where the textfile remembers how it was before. */
async function tellByNtfy(
	{ notifications: { ntfy }, secrets }: Whom,
	{ environment, host, task, exitCode, transcript }: Told,
	before: number | undefined,
	most: number,
): Promise<void> {
	const isWellAgain = exitCode === exitCodes.done && before !== undefined && before !== exitCodes.done
	if (ntfy === undefined || (exitCode === exitCodes.done && !isWellAgain)) return
	const topic = secrets.need("NTFY_TOPIC", ntfy.url)
	const meaning = Object.entries(exitMeanings).find(([code]) => Number(code) === exitCode)?.[1]
	const what = isWellAgain ? "is well again" : `ended with ${exitCode}${meaning ? `: ${meaning}` : ""}`
	await publish(
		{ url: ntfy.url, topic },
		{
			title: `${task} of ${environment}, ${host}, ${what}`,
			text: transcript === "" ? "It said nothing." : transcript,
			priority: isWellAgain ? "default" : ntfy.priority,
			tag: isWellAgain ? "white_check_mark" : "warning",
		},
		{ timeoutMs: most },
	)
}

/** Gathers what a run says and does, while the events pass by. */
function listen() {
	let text = ""
	const add = (more: string) => {
		text += more
		// Only the end is ever told.
		if (text.length > 200_000) text = text.slice(-100_000)
	}
	const terminal = { out: add, talk: add, interactive: false, columns: 120, color: false }
	const plain = unfailing(plainReporter(terminal))
	const sent = new Map<string, number>()
	let rows: readonly SummaryRow[] = []
	const event = (event: Event) => {
		plain.event(event)
		if (event.event === "end") rows = event.summary as SummaryRow[]
		if (event.event === "progress" && event.from?.startsWith("to ") === true)
			// A snapshot may go in pieces, each of its own size.
			sent.set(`${event.step} ${event.from} ${event.totalBytes}`, event.doneBytes)
	}
	return {
		reporter: { event, close: async () => {} },
		finish: async () => {
			await plain.close()
			return text
		},
		storedBytes: () => [...sent.values()].reduce((sum, bytes) => sum + bytes, 0),
		rows: () => rows,
	}
}

function describe(failure: unknown): string {
	const hint =
		failure instanceof OperatorError && failure.hint !== undefined ? `\n  next: ${failure.hint}` : ""
	return `error: ${messageOf(failure)}${hint}\n`
}

const rootOf = (host: HostConfiguration) => (host.connection === "directory" ? host.directory : undefined)

/**
 * The run never came as far as its target: a configuration or a file of secrets that is wrong. What can be read of them
 * is used all the same, on a machine that knows its own environment.
 */
async function salvage(surroundings: Surroundings, opening: OpenOptions): Promise<Whom | undefined> {
	const { variables, workingDirectory, session, signal } = surroundings
	if (session !== undefined) return undefined
	const { path, text } = readConfigurationFile({ path: opening.config, variables, workingDirectory })
	const [own, ownHost] = readHostOwnEnvironment()?.split(/\s+/) ?? []
	const environment = opening.env ?? (variables["COMFYUME_ENV"] || own)
	// Somewhere else it is not this machine's business.
	if (environment === undefined || (own !== environment && opening.here !== true)) return undefined
	const found = salvageNotifications(text, environment, opening.host ?? ownHost)
	if (found === undefined) return undefined
	const machine = localHost({ name: hostname(), environment: variables, signal })
	const sources = { file: opening.secrets, variables, workingDirectory, configurationPath: path }
	const secrets = await loadSecrets({ ...sources, readKeyring: keyringReader(machine) })
	return { environment, ...found, secrets, root: undefined }
}

async function within(most: number, work: Promise<void>): Promise<void> {
	const late = Promise.withResolvers<never>()
	const timer = setTimeout(() => late.reject(new OperatorError(`no end within ${most / 1000} s`)), most)
	try {
		await Promise.race([work, late.promise])
	} finally {
		clearTimeout(timer)
	}
}

/** As healthchecks wants a run's id. @param randomId gives eight hexadecimal digits */
function uuid(randomId: () => string): string {
	const [a, b, c, d] = [randomId(), randomId(), randomId(), randomId()]
	return `${a}-${b.slice(0, 4)}-4${b.slice(5)}-8${c.slice(1, 4)}-${c.slice(4)}${d}`
}
