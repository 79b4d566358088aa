// comfyume host: whose key is whose.
import { randomUUID } from "node:crypto"
import { mkdir, open, readFile, rename, rm } from "node:fs/promises"
import { dirname, join } from "node:path"
import { Command } from "commander"
import {
	chooseEnvironment,
	findConfiguration,
	type LoadedConfiguration,
	loadConfiguration,
} from "../lib/config/configuration.ts"
import { codeOf, exitCodes, OperatorError, systemError } from "../lib/errors.ts"
import { quoteForShell } from "../lib/host/command.ts"
import {
	fingerprintOf,
	isFingerprint,
	judgeHostKey,
	keyTypeOf,
	readKnownHosts,
	withKnownKey,
} from "../lib/host/known-hosts.ts"
import { exitStatusHelp } from "../lib/ui/help.ts"
import type { CommandRun, Surroundings } from "../lib/ui/surroundings.ts"

/** Where a host is reached, and which file holds its key. */
export type ResolvedHost = { name: string; address: string; port: number; knownHostsFile: string }

type HostOptions = { knownHosts?: string; replace?: boolean; config?: string; env?: string }

const connectTimeoutMs = 15_000

export function create({ surroundings }: CommandRun): Command {
	const { terminal, signal } = surroundings
	const host = new Command("host")
		.summary("trust a host's key")
		.description("Reads and accepts the keys by which hosts are known.")
		.addHelpText("after", exitStatusHelp([0, 2, 4, 8]))
	located(host.command("trust"))
		.description("Accepts a host's key, after comparing the key on the wire with the fingerprint given.")
		.argument("<host>", "a configured host, or address[:port]")
		.argument(
			"<fingerprint>",
			"as the host's own console prints it: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
		)
		.option("--replace", "also when another key stands there")
		.addHelpText("after", exitStatusHelp([0, 2, 4, 8]))
		.action(async (name: string, fingerprint: string, options: HostOptions) => {
			if (!isFingerprint(fingerprint))
				throw new OperatorError(`${fingerprint} is no fingerprint: it is SHA256: and 43 letters and digits`, {
					exitCode: exitCodes.usage,
					hint: "on the host: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub",
				})
			const target = resolveHost(name, options, surroundings)
			const shown = await readKeys(target, signal)
			const key = shown.find((candidate) => fingerprintOf(candidate) === fingerprint)
			if (key === undefined)
				throw new OperatorError(
					`${name} does not show ${fingerprint} but ${shown.map(fingerprintOf).join(", ")}: nothing was accepted`,
					{ exitCode: exitCodes.refusedByGuard, hint: "compare with the host's own console" },
				)
			const already = await acceptKey(target, key, options.replace === true)
			terminal.talk(
				`${name} (${keyTypeOf(key)} ${fingerprint}) ${already ? "stands already" : "now stands"} in ${target.knownHostsFile}\n`,
			)
		})
	located(host.command("key"))
		.description("Prints the keys that a host shows. Printing is not verifying.")
		.argument("<host>", "a configured host, or address[:port]")
		.addHelpText("after", exitStatusHelp([0, 2, 4]))
		.action(async (name: string, options: HostOptions) => {
			const keys = await readKeys(resolveHost(name, options, surroundings), signal)
			for (const key of keys) terminal.out(`${fingerprintOf(key)} ${keyTypeOf(key)}\n`)
			terminal.talk(
				"This is what the wire shows, and whoever sits in between would show the same. Compare it with the host's own console before `comfyume host trust`.\n",
			)
		})
	return host
}

const located = (command: Command) =>
	command
		.option(
			"--config <file>",
			"the configuration (else $COMFYUME_CONFIG, comfyume.yaml upwards, /etc/comfyume)",
		)
		.option("--env <name>", "only a host of this environment")
		.option(
			"--known-hosts <file>",
			"the file that holds the keys (default: known_hosts beside the configuration)",
		)

/** A configured host by its name, with the port it is configured with; else what is written, an address. */
function resolveHost(
	name: string,
	{ config: path, env, knownHosts }: HostOptions,
	surroundings: Pick<Surroundings, "variables" | "workingDirectory">,
): ResolvedHost {
	const { variables, workingDirectory } = surroundings
	const sources = { path, variables, workingDirectory }
	// An address can be trusted before there is any configuration.
	const configuration = findConfiguration(sources) === undefined ? undefined : loadConfiguration(sources)
	if (configuration === undefined && env !== undefined) loadConfiguration(sources)
	const knownHostsFile = join(
		knownHosts === undefined && configuration !== undefined ? dirname(configuration.path) : workingDirectory,
		knownHosts ?? "known_hosts",
	)
	const found = configuration === undefined ? undefined : configuredHost(configuration, name, env)
	return { ...(found ?? writtenAddress(name)), knownHostsFile }
}

function configuredHost(
	configuration: LoadedConfiguration,
	name: string,
	env: string | undefined,
): Omit<ResolvedHost, "knownHostsFile"> | undefined {
	const environments =
		env === undefined
			? Object.values(configuration.environments)
			: [chooseEnvironment(configuration, { option: env, variables: {} })]
	// A name is that of one host only, whatever the environment.
	const hosts = environments.flatMap((environment) => environment.hosts)
	const host = hosts.find((candidate) => candidate.name === name)
	if (host === undefined && env === undefined) return undefined
	if (host === undefined)
		throw new OperatorError(`${env} has no host ${name}`, {
			exitCode: exitCodes.usage,
			hint: `choose from: ${hosts.map((candidate) => candidate.name).join(", ")}`,
		})
	if (host.connection === "directory")
		throw new OperatorError(`${name} is a directory that stands in for a machine: it has no key to trust`, {
			exitCode: exitCodes.usage,
			hint: `comfyume config show --config ${quoteForShell(configuration.path)}`,
		})
	return { name, address: host.address, port: host.port }
}

function writtenAddress(name: string): Omit<ResolvedHost, "knownHostsFile"> {
	const [, bracketed, plain, port] = /^(?:\[([^\]]+)\]|([^:]+))(?::(\d{1,5}))?$/.exec(name) ?? []
	const address = bracketed ?? plain
	if (address === undefined || Number(port ?? 22) > 65_535)
		throw new OperatorError(`${name} is neither a configured host nor address[:port]`, {
			exitCode: exitCodes.usage,
			hint: "comfyume config show",
		})
	return { name, address, port: Number(port ?? 22) }
}

async function readKeys(target: ResolvedHost, signal: AbortSignal): Promise<Buffer[]> {
	const { readHostKeys } = await import("../lib/host/ssh-connection.ts")
	return readHostKeys({ ...target, connectTimeoutMs, signal })
}

/** Adds the key to the file, which is replaced as a whole. True when it stood there already. */
async function acceptKey(target: ResolvedHost, key: Buffer, replace: boolean): Promise<boolean> {
	const { name, knownHostsFile } = target
	const text = await readFile(knownHostsFile, "utf8").catch((error: unknown) => {
		if (codeOf(error) === "ENOENT") return ""
		throw systemError(error, `reading ${knownHostsFile}`)
	})
	const judgement = judgeHostKey(key, target, readKnownHosts(text), [])
	if (judgement.state === "known") return true
	if (judgement.state === "revoked")
		throw new OperatorError(`this key is revoked: ${knownHostsFile} line ${judgement.recorded.line}`, {
			exitCode: exitCodes.refusedByGuard,
		})
	if (judgement.state === "changed" && !replace) {
		const old = judgement.recorded.map((known) => `${fingerprintOf(known.key)} (line ${known.line})`)
		throw new OperatorError(`another key of ${name} stands in ${knownHostsFile}: ${old.join(", ")}`, {
			exitCode: exitCodes.refusedByGuard,
			hint: `if the host's own console shows the new one: comfyume host trust ${name} ${fingerprintOf(key)} --replace`,
		})
	}
	await replaceFile(knownHostsFile, withKnownKey(text, target, key, replace))
	return false
}

async function replaceFile(file: string, text: string): Promise<void> {
	const partial = `${file}.${randomUUID().slice(0, 8)}.partial`
	try {
		await mkdir(dirname(file), { recursive: true })
		const handle = await open(partial, "wx", 0o644)
		try {
			await handle.chmod(0o644)
			await handle.writeFile(text)
			await handle.sync()
		} finally {
			await handle.close()
		}
		await rename(partial, file)
	} catch (error) {
		await rm(partial, { force: true })
		throw systemError(error, `writing ${file}`)
	}
}
