// The firewall lets in exactly what the configuration says. Rules are added before it is switched on, what is too many
// goes last, and nothing is ever reset: whoever works over SSH stays connected. Docker publishes its ports past ufw, in a
// chain of its own; the stack publishes only nginx's.
import type { FirewallRule } from "../../config/environment.ts"
import { exitCodes, OperatorError } from "../../errors.ts"
import {
	readInputChain,
	readUfwAdded,
	readUfwStatus,
	type UfwRule,
	wordsToDelete,
} from "../../formats/ufw.ts"
import { command } from "../../host/command.ts"
import type { LocalHost } from "../../host/local.ts"
import { type Finding, needed, type Step, satisfied } from "../../plan/step.ts"
import type { StepContext } from "../context.ts"
import { sshdPorts } from "./sshd.ts"

const unit = "ufw"
const program = "/usr/sbin/ufw"
const settings = "/etc/ufw/ufw.conf"

/** ufw is on, also after a boot, and its rules are those of the host's configuration: no more, no less. */
export function firewallIsExact({ host, hostConfiguration }: StepContext): Step {
	const wanted = hostConfiguration.firewall
	return {
		id: "firewall",
		title: "the firewall lets in exactly what it should",
		check: async (): Promise<Finding> => {
			if (host.standIn) return satisfied("a directory stands in for the machine: it has no firewall")
			// In a dry run on a fresh machine the packages would bring it.
			if (!(await host.test(command("test", "-x", program))))
				return needed(`there is no ${program}`, "apt-get install ufw")
			const { wrong, inKernel } = await look(host, wanted)
			if (inKernel.length > 0)
				return needed(
					[...wrong, ...inKernel].join("; "),
					"iptables --list-rules INPUT; a reboot loads ufw's rules anew",
				)
			if (wrong.length > 0) return needed(wrong.join("; "), "ufw status verbose")
			return satisfied(`active: ${wanted.map(inWords).join(", ")}, and nothing else`)
		},
		apply: async () => {
			await requireSsh(host, wanted)
			const { missing, halves, incoming } = await look(host, wanted)
			// An allow that is to be a limit is changed in place, and the other way round; of half a rule the rest is added.
			for (const rule of [...missing, ...halves]) await ufw(host, wordsOf(rule))
			if (incoming !== "deny") await ufw(host, ["default", "deny", "incoming"])
			await ufw(host, ["--force", "enable"])
			await host.execute(command("systemctl", "enable", unit))
			for (const rule of (await look(host, wanted)).extra)
				await ufw(host, ["--force", ...wordsToDelete(rule)])
			// What is in force may be older than what is configured.
			const { wrong, inKernel } = await look(host, wanted)
			if (wrong.length + inKernel.length > 0) await ufw(host, ["reload"])
		},
	}
}

const inWords = ({ port, protocol, limit }: FirewallRule) => `${port}/${protocol}${limit ? " limited" : ""}`
const wordsOf = ({ port, protocol, limit }: FirewallRule): UfwRule => [
	limit ? "limit" : "allow",
	`${port}/${protocol}`,
]

const ufw = (host: LocalHost, words: readonly string[]) => host.execute(command("ufw", ...words))

type Look = {
	missing: readonly FirewallRule[]
	/** They are there for one of IPv4 and IPv6 alone: `ufw delete NUMBER` takes away one at a time. */
	halves: readonly FirewallRule[]
	extra: readonly UfwRule[]
	incoming: string | undefined
	/** In the operator's words; empty when all is right. */
	wrong: readonly string[]
	/** The same, of what the kernel does though ufw is on. */
	inKernel: readonly string[]
}

async function look(host: LocalHost, wanted: readonly FirewallRule[]): Promise<Look> {
	const [added, said, conf, atBoot] = await Promise.all([
		host.capture(command("ufw", "show", "added")),
		host.capture(command("ufw", "status", "verbose")),
		host.read(settings),
		host.test(command("systemctl", "is-enabled", "--quiet", unit)),
	])
	const rules = readUfwAdded(added.stdout)
	const { active, incoming, rows } = readUfwStatus(said.stdout)
	const isThere = (rule: FirewallRule) => rules.some((words) => same(words, wordsOf(rule)))
	const missing = wanted.filter((rule) => !isThere(rule))
	const extra = rules.filter((words) => !wanted.some((rule) => same(words, wordsOf(rule))))
	const enabled = /^ENABLED=yes$/m.test(conf?.toString() ?? "") && atBoot
	const strange = rows.filter((row) => !wanted.some((rule) => isRowOf(row, rule)))
	// Without IPv6 in ufw's settings no row is of it.
	const families = ["", " (v6)"].filter(
		(suffix) => suffix === "" || rows.some(({ to }) => to.endsWith(suffix)),
	)
	const halves = wanted.filter(
		(rule) => isThere(rule) && !families.every((suffix) => rows.some((row) => isRowOf(row, rule, [suffix]))),
	)
	const inForce = [
		...halves.map((rule) => `${inWords(rule)} is configured and not in force`),
		...(extra.length === 0 ? strange : []).map(
			({ to, action, from }) => `${to} ${action} ${from} is in force`,
		),
	]
	return {
		...{ missing, extra, incoming: active ? incoming : undefined },
		halves: active ? halves : [],
		wrong: [
			...(active ? [] : ["ufw is not active"]),
			...(active && !enabled ? ["ufw would be off after a reboot"] : []),
			...(active && incoming !== "deny"
				? [`what no rule is about is let in (${incoming ?? "unknown"})`]
				: []),
			...missing.map((rule) => `${inWords(rule)} is not let in as it should be`),
			...extra.map((words) => `\`ufw ${words.join(" ")}\` is not in comfyume.yaml`),
			...(active ? inForce : []),
		],
		inKernel: active ? await kernelFaults(host) : [],
	}
}

// ufw answers from its files: it says "active" of a kernel whose rules somebody has flushed.
async function kernelFaults(host: LocalHost): Promise<string[]> {
	// A kernel without IPv6 has nothing to shut.
	const hasIpv6 = (await host.read("/proc/net/if_inet6")) !== undefined
	const faults = await Promise.all(
		["iptables", ...(hasIpv6 ? ["ip6tables"] : [])].map(async (tables) => {
			const { stdout } = await host.capture(command(tables, "--wait", "--list-rules", "INPUT"))
			const { policy, asks, accepts } = readInputChain(stdout)
			const open = policy !== "DROP"
			// Without IPv6 in ufw's settings it shuts it whole, by the policy alone.
			const deaf = tables === "iptables" && !asks.includes("ufw-before-input")
			return [
				...(open
					? [`the kernel lets in what no rule is about (${tables}: policy ${policy ?? "unknown"})`]
					: []),
				...(deaf ? [`the kernel doesn't ask ufw's rules (${tables}: INPUT is without ufw's chains)`] : []),
				...accepts.map((rule) => `the kernel lets in more than ufw does (${tables}: ${rule})`),
			]
		}),
	)
	return faults.flat()
}

const same = (one: UfwRule, other: UfwRule) =>
	one.length === other.length && one.every((word, index) => word === other[index])

function isRowOf(
	{ to, action, from }: { to: string; action: string; from: string },
	{ port, protocol, limit }: FirewallRule,
	families: readonly string[] = ["", " (v6)"],
) {
	if (action !== (limit ? "LIMIT IN" : "ALLOW IN")) return false
	return families.some((suffix) => to === `${port}/${protocol}${suffix}` && from === `Anywhere${suffix}`)
}

/** @throws {OperatorError} (8) when the rules would shut out SSH */
async function requireSsh(host: LocalHost, wanted: readonly FirewallRule[]): Promise<void> {
	const ports = await sshdPorts(host)
	const lets = (port: number) => wanted.some((rule) => rule.port === port && rule.protocol === "tcp")
	if (ports.length === 0 || ports.some(lets)) return
	throw new OperatorError(
		`sshd on ${host.name} listens on ${ports.join(", ")}, and the firewall of comfyume.yaml would shut it out`,
		{ exitCode: exitCodes.refusedByGuard, hint: `add "${ports[0]}/tcp limit" to the host's firewall` },
	)
}
