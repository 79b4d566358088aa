// A run on a host elsewhere: the release is put there, started, and its events are shown here. Bytes move on the
// machine that has the disk.
import { readdir, readFile } from "node:fs/promises"
import { dirname, join } from "node:path"
import { z } from "zod"
import type { SecretName } from "../config/secrets.ts"
import { type ExitCode, exitCodes, exitMeanings, OperatorError } from "../errors.ts"
import { ensureRelease, type ReleaseArchive } from "../host/release.ts"
import { runOnHost } from "../host/session.ts"
import { openSshHost } from "../host/ssh.ts"
import { eventsVersion, type Reporter } from "../plan/events.ts"
import type { Twin } from "../tailscale/tailnet.ts"
import type { Surroundings } from "../ui/surroundings.ts"
import type { SentAlong, Target } from "./open.ts"

export type RemoteOptions = {
	/** The command and its options as the host is to run them, without configuration and secrets. */
	argv: readonly string[]
	/** The key of a machine that is about to get its old identity back; accepted for this run only. */
	hostFingerprint?: string
	/** Those that only this command needs on the host. */
	alsoSends: readonly SecretName[]
	twin: Twin
	files: Readonly<Record<string, string>>
	reporter: Reporter
}

/** What any run needs on the host; the others stay here, but for those that the command says it needs. */
const sentSecrets = [
	"R2_ACCESS_KEY_ID",
	"R2_SECRET_ACCESS_KEY",
	"CLOUDFLARE_API_TOKEN",
	"GH_TOKEN",
	"HF_TOKEN",
	"HEALTHCHECKS_PING_KEY",
	"NTFY_TOPIC",
] as const

const connectTimeoutMs = 20_000
const keepaliveMs = 15_000

/**
 * Runs a command on the host that it is about. Configuration and secrets go in on stdin and are written nowhere.
 * @throws {OperatorError} when the host can't be reached or refuses us, or there is no release for its kind of machine
 */
export async function runElsewhere(
	surroundings: Surroundings,
	{ configuration, environment, hostConfiguration, secrets, spoken }: Target,
	{ argv, hostFingerprint, alsoSends, twin, files, reporter }: RemoteOptions,
): Promise<ExitCode> {
	if (hostConfiguration.connection !== "ssh") throw new Error("a directory is never elsewhere")
	const { variables, signal, terminal, packageRoot, now } = surroundings
	const { name, address, port, user, keyFiles, hostKeys } = hostConfiguration
	const releases = await readReleases(packageRoot)
	await using host = await openSshHost({
		name,
		address,
		port,
		user,
		hostKeys,
		keyFiles,
		knownHosts: join(dirname(configuration.path), "known_hosts"),
		connectTimeoutMs,
		keepaliveMs,
		signal,
		sudo: user !== "root",
		...(hostFingerprint === undefined ? {} : { extraFingerprint: hostFingerprint }),
		...(variables["SSH_AUTH_SOCK"] === undefined ? {} : { agentSocket: variables["SSH_AUTH_SOCK"] }),
	})
	const release = await ensureRelease(host, releases)
	if (release.installed)
		reporter.event({
			version: eventsVersion,
			at: now().toISOString(),
			event: "note",
			level: "info",
			text: `comfyume ${release.archive.version} was put on ${name} as ${release.executable}`,
		})
	const payload: SentAlong = {
		version: 1,
		configuration: configuration.text,
		configurationPath: configuration.path,
		environment: environment.name,
		host: name,
		place: `${host.place} over SSH`,
		spoken,
		secrets: secrets.toPayload([...sentSecrets, ...alsoSends]).reveal(),
		twin,
		files: { ...files },
	}
	const exitCode = await runOnHost(host, {
		executable: release.executable,
		argv,
		payload,
		onEvent: (event) => reporter.event(event),
		onTalk: terminal.talk,
		signal,
	})
	return isExitCode(exitCode) ? exitCode : exitCodes.bug
}

const isExitCode = (code: number): code is ExitCode => code in exitMeanings

const releaseSchema = z.object({
	version: z.string(),
	arch: z.enum(["x64", "arm64"]),
	digest: z.string(),
	sizeBytes: z.number(),
	sha256: z.string(),
})

/** The releases that lie beside this comfyume, one per kind of machine. */
async function readReleases(packageRoot: string): Promise<ReleaseArchive[]> {
	const directory = join(packageRoot, "dist/release")
	const files = (await readdir(directory).catch(() => [])).filter((name) => name.endsWith(".json"))
	if (files.length === 0)
		throw new OperatorError(`there is no release of comfyume to put on a host: ${directory} is empty`, {
			exitCode: exitCodes.usage,
			hint: "npm run release   # and npm run release -- --arch arm64 for ARM hosts",
		})
	return Promise.all(
		files.map(async (file) => ({
			...releaseSchema.parse(JSON.parse(await readFile(join(directory, file), "utf8"))),
			file: join(directory, file.replace(/\.json$/, ".tar.zst")),
		})),
	)
}
