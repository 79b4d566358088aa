// The host's secrets: one file that only root reads, for runs that nobody started; and, where it is asked for, the
// kernel's keyring, filled from that file at each boot.
import { stat } from "node:fs/promises"
import { type SecretName, type Secrets, secretNames, secretsNeededBy } from "../../config/secrets.ts"
import { codeOf, exitCodes, OperatorError, systemError } from "../../errors.ts"
import { readEnvFile } from "../../formats/env-file.ts"
import { command } from "../../host/command.ts"
import { keyringHolds, keyringReader, putIntoKeyring } from "../../host/keyring.ts"
import type { LocalHost } from "../../host/local.ts"
import { needed, type Step, satisfied } from "../../plan/step.ts"
import { quoteForEnvFile } from "../../stack/env-render.ts"
import type { StepContext } from "../context.ts"
import { program } from "../timer-files.ts"

export const secretsFile = "/etc/comfyume/secrets.env"

/** What helps timers' runs where it is given, and isn't missed where it is not. */
const welcome: readonly SecretName[] = ["HF_TOKEN", "CLOUDFLARE_API_TOKEN", "GH_TOKEN"]

/**
 * The file holds what the timers' runs need, as this run has it. What else stands there stays. The key that opens
 * encrypted backups, and what a restore alone needs, never come here.
 */
export function secretsAreInstalled(
	{ host, environment }: StepContext,
	secrets: Pick<Secrets, "find">,
): Step {
	const necessary = [...new Set(secretsNeededBy(environment).map(({ name }) => name))].filter(
		// A public repository asks for none; that a private one does, a dry run of the backup finds.
		(name) => !welcome.includes(name),
	)
	const wanted = [...necessary, ...welcome].flatMap((name) => {
		const value = secrets.find(name)?.reveal()
		return value === undefined ? [] : [{ name, value }]
	})
	const look = async () => {
		const text = (await host.read(secretsFile))?.toString() ?? ""
		const { entries, problems } = readEnvFile(text)
		const [problem] = problems
		if (problem !== undefined)
			throw new OperatorError(`${secretsFile}:${problem.line}: ${problem.message}`, {
				exitCode: exitCodes.usage,
				hint: problem.fix,
			})
		const there = new Map(entries.map(({ name, value }) => [name, value]))
		const different = wanted.filter(({ name, value }) => there.get(name) !== value)
		const lacking = necessary.filter(
			(name) => (there.get(name) ?? "") === "" && !wanted.some((one) => one.name === name),
		)
		return { text, different, lacking, open: await whyOpen(host) }
	}
	return {
		id: "secrets",
		title: "the host has the secrets that its timers need",
		check: async () => {
			const { different, lacking, open } = await look()
			if (lacking.length > 0)
				return needed(
					`${lacking.join(" and ")} ${lacking.length === 1 ? "is" : "are"} neither in ${secretsFile} nor in this run`,
					`add it to secrets.env here, and run this again; comfyume secrets check says where it looked`,
				)
			if (different.length > 0)
				return needed(
					`${different.map(({ name }) => name).join(", ")}: not in ${secretsFile} as this run has it`,
				)
			if (open !== undefined) return needed(open)
			const count = necessary.length
			return satisfied(
				count === 0 ? "the timers need none" : `${secretsFile} holds ${necessary.join(", ")}; root's alone`,
			)
		},
		apply: async () => {
			const { text, different } = await look()
			await host.files.makeDirectory("/etc/comfyume", 0o755)
			await host.write(secretsFile, withEntries(text, different), { mode: 0o600, owner: "root:root" })
		},
	}
}

/** The text with these names set, in their own lines where they have one. Pure. */
export function withEntries(text: string, entries: readonly { name: string; value: string }[]): string {
	const left = new Map(entries.map(({ name, value }) => [name, `${name}=${quoteForEnvFile(name, value)}`]))
	const lines = (text === "" ? [] : text.replace(/\n$/, "").split("\n")).flatMap((line) => {
		const [, name = ""] = /^\s*(?:export\s+)?([A-Za-z_]\w*)\s*=/.exec(line) ?? []
		const set = left.get(name)
		if (set === undefined) return entries.some((entry) => entry.name === name) ? [] : [line]
		left.delete(name)
		return [set]
	})
	return `${[...lines, ...left.values()].join("\n")}\n`
}

/** Why the file isn't root's alone; undefined when it is. */
async function whyOpen(host: LocalHost): Promise<string | undefined> {
	try {
		const { mode, uid } = await stat(host.path(secretsFile))
		if ((mode & 0o777) !== 0o600) return `${secretsFile} has mode ${(mode & 0o777).toString(8)}, not 600`
		if (!host.standIn && uid !== 0) return `${secretsFile} belongs to user ${uid}, not to root`
		return undefined
	} catch (error) {
		if (codeOf(error) === "ENOENT") return undefined
		throw systemError(error, `looking at ${secretsFile}`)
	}
}

const unit = "comfyume-keyring.service"
const unitFile = `/etc/systemd/system/${unit}`
const unitText = `# Written by comfyume; changes here are lost.
[Unit]
Description=comfyume: the host's secrets are loaded into the kernel's keyring
# Before anything of ours runs: a keyring is empty after a boot.
Before=timers.target

[Service]
Type=oneshot
RemainAfterExit=yes
# The user's keyring, and not one of this unit's own.
KeyringMode=shared
ExecStart=${program} secrets load --quiet

[Install]
WantedBy=multi-user.target
`

/** A unit fills root's keyring from the file at each boot, and has done so now. */
export function secretsReachKeyring({ host }: StepContext): Step {
	const loadable = async () => {
		const { entries } = readEnvFile((await host.read(secretsFile))?.toString() ?? "")
		// As they are read for a run: an empty one is none.
		return entries.filter(({ name, value }) => value !== "" && secretNames.some((known) => known === name))
	}
	return {
		id: "keyring",
		title: "the host's secrets are in the kernel's keyring",
		check: async () => {
			if (host.standIn)
				return satisfied("a directory stands in for the machine: it has no keyring of its own")
			if ((await host.read(unitFile))?.toString() !== unitText)
				return needed(`${unitFile} is not as it should be`)
			if (!(await host.test(command("systemctl", "is-enabled", "--quiet", unit))))
				return needed(`${unit} would not run at the next boot`)
			const wanted = await loadable()
			const inKeyring = keyringReader(host)
			const wrong: string[] = []
			for (const { name, value } of wanted) {
				const found = (await inKeyring(name))?.reveal()
				if (found === undefined) wrong.push(`${name} is not in the keyring`)
				// Whoever asks the keyring alone would go on with the old one.
				else if (found !== value) wrong.push(`${name} in the keyring is not that of ${secretsFile}`)
			}
			return wrong.length === 0
				? satisfied(`${wanted.length} secrets are there as in ${secretsFile}, and will be after a boot`)
				: needed(wrong.join("; "), `systemctl status ${unit}`)
		},
		apply: async () => {
			await host.write(unitFile, unitText, { mode: 0o644 })
			await host.execute(command("systemctl", "daemon-reload"))
			await host.execute(command("systemctl", "enable", unit))
			await host.execute(command("systemctl", "restart", unit))
		},
	}
}

/** The secrets of the file are put into the keyring of who runs this. */
export function keyringIsLoaded({ host }: StepContext, secrets: Pick<Secrets, "find" | "origin">): Step {
	const wanted = secretNames.flatMap((name) => {
		const secret = secrets.find(name)
		// What came from there needs no bringing back.
		return secret === undefined || secrets.origin(name) === "the kernel keyring" ? [] : [{ name, secret }]
	})
	let loaded = false
	return {
		id: "keyring",
		title: "the kernel's keyring",
		check: async () => {
			const absent: string[] = []
			for (const { name } of wanted) if (!(await keyringHolds(host, name))) absent.push(name)
			if (absent.length > 0) return needed(`${absent.join(", ")}: not there yet`)
			// An older value may stand there: it is put anew, which costs nothing.
			return loaded || wanted.length === 0
				? satisfied(`holds ${wanted.map(({ name }) => name).join(", ") || "nothing: there are no secrets"}`)
				: needed("what stands there may be older than the file")
		},
		apply: async () => {
			for (const { name, secret } of wanted) await putIntoKeyring(host, name, secret)
			loaded = true
		},
	}
}
