// The workshop's certificate: there, right, renewed in time, and the one that nginx really serves. certbot asks the
// authority for it; that it came, fits and is served is found out here.
import { dirname, join } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import { type Certificate, type Chain, readChain } from "../formats/certificate.ts"
import { type Command, command, withOptions } from "../host/command.ts"
import { type Finding, needed, type Step, satisfied, unknown } from "../plan/step.ts"
import type { Stack } from "../stack/description.ts"
import type { Docker } from "../stack/docker.ts"
import { askDoor } from "../stack/front.ts"
import type { StepContext } from "./context.ts"

/** With so many days left it is renewed, or in the last third of a shorter life, as Let's Encrypt recommends. */
export const renewDays = 30
// With so many left, or half of that third, somebody has to look: renewals have failed for long.
const alarmDays = 14

const dayMs = 86_400_000
const selfSignedDays = 90
const selfSignedOrganisation = "comfyume self-signed, not trusted"

export type CertificateWork = {
	context: StepContext
	stack: Stack
	docker: Docker
}

/** What lies where nginx reads it. */
type Installed =
	| { state: "missing"; because: string }
	| { state: "broken"; because: string }
	| { state: "there"; chain: Chain; leaf: Certificate; key: string; pem: string }

const pathsOf = ({ stack: { configuration } }: Pick<CertificateWork, "stack">) => ({
	certificate: `${configuration.paths.certificates}/cert.pem`,
	key: `${configuration.paths.certificates}/key.pem`,
	/** certbot's own, renewed in place. */
	live: `${configuration.certificates.directory}/live/comfyume`,
})

async function installed({ context: { host }, stack }: CertificateWork, place?: string): Promise<Installed> {
	const paths = pathsOf({ stack })
	const certificate = place === undefined ? paths.certificate : `${place}/fullchain.pem`
	const key = place === undefined ? paths.key : `${place}/privkey.pem`
	const [pem, keyText] = (await Promise.all([host.read(certificate), host.read(key)])).map((file) =>
		file?.toString(),
	)
	if (pem === undefined) return { state: "missing", because: `there is no ${certificate}` }
	if (keyText === undefined) return { state: "missing", because: `there is no ${key}` }
	const chain = readChain(pem)
	if (chain === undefined)
		return { state: "broken", because: `no certificate can be read from ${certificate}` }
	if (!chain.leaf.fits(keyText))
		return { state: "broken", because: `${key} is not the key of ${certificate}` }
	return { state: "there", chain, leaf: chain.leaf, key: keyText, pem }
}

const daysLeft = ({ until }: Certificate, now: Date) => Math.floor((until.getTime() - now.getTime()) / dayMs)

const lifeDays = ({ from, until }: Certificate) => (until.getTime() - from.getTime()) / dayMs
const isDue = (leaf: Certificate, now: Date) => daysLeft(leaf, now) <= Math.min(renewDays, lifeDays(leaf) / 3)
const isLate = (leaf: Certificate, now: Date) =>
	daysLeft(leaf, now) <= Math.min(alarmDays, lifeDays(leaf) / 6)

/** Why a browser would refuse it; undefined when it would not. */
function whyRefused({ leaf, problem }: Chain, domain: string, now: Date): string | undefined {
	if (leaf.until <= now) return `it ended on ${dateOf(leaf.until)}`
	if (leaf.from > now) return `it begins on ${dateOf(leaf.from)}: is this machine's clock right?`
	// Behind those two: a rehearsal may have a self-signed one, and no old one.
	if (leaf.selfSigned) return "it is self-signed: no browser trusts it"
	if (!leaf.covers(domain)) return `it is for ${leaf.names.join(", ") || "no name"}, and not for ${domain}`
	return problem
}

const dateOf = (date: Date) => date.toISOString().slice(0, 10)
const tell = (leaf: Certificate, now: Date) =>
	`by ${leaf.issuer}, for ${leaf.names.join(", ")}, until ${dateOf(leaf.until)} (${daysLeft(leaf, now)} days)`

/**
 * nginx doesn't start without a certificate. Where there is none, a self-signed one takes its place until the real one
 * comes; what is there is never replaced by it.
 */
export function certificateToStartWith(work: CertificateWork): Step {
	const { context, stack } = work
	const { host } = context
	const paths = pathsOf(work)
	const { acme } = stack.configuration.paths
	return {
		id: "certificate-there",
		title: "nginx has a certificate and a webroot to start with",
		async check() {
			const found = await installed(work)
			if (found.state === "missing") return needed(found.because)
			if (!(await host.test(command("test", "-d", host.path(acme))))) return needed(`there is no ${acme}`)
			if (found.state === "broken")
				throw new OperatorError(found.because, {
					exitCode: exitCodes.refusedByGuard,
					hint: `comfyume certificates install --cert FILE --key FILE ${context.spoken}`,
				})
			return found.leaf.selfSigned
				? satisfied("a self-signed one, which no browser trusts; comfyume certificates issue replaces it")
				: satisfied(tell(found.leaf, context.now()))
		},
		async apply(report) {
			const { domain } = stack
			await host.files.makeDirectory(acme, 0o755)
			if ((await installed(work)).state === "there") return
			await host.files.makeDirectory(stack.configuration.paths.certificates, 0o755)
			const half = (await host.read(paths.key)) ?? (await host.read(paths.certificate))
			if (half !== undefined)
				throw new OperatorError(`of ${paths.certificate} and ${paths.key} only one is there`, {
					exitCode: exitCodes.refusedByGuard,
					hint: `comfyume certificates install --cert FILE --key FILE ${context.spoken}`,
				})
			// One file for both, so that the key is on no command line and in no file that others can read.
			const made = `${paths.key}.${context.randomId()}.partial`
			await host.write(made, "", { mode: 0o600 })
			try {
				const subject = `/O=${selfSignedOrganisation}/CN=${domain.length > 64 ? "workshop" : domain}`
				await host.execute(
					command(
						...([
							"openssl",
							"req",
							"-x509",
							"-newkey",
							"ec",
							"-pkeyopt",
							"ec_paramgen_curve:prime256v1",
							"-noenc",
						] as const),
						...["-subj", subject, "-addext", `subjectAltName=DNS:${domain}`, "-days", String(selfSignedDays)],
						...["-keyout", host.path(made), "-out", host.path(`${made}.cert`)],
					),
				)
				const [key, certificate] = await Promise.all([host.read(made), host.read(`${made}.cert`)])
				await place(work, String(certificate), String(key))
			} finally {
				await host.files.remove(made)
				await host.files.remove(`${made}.cert`)
			}
			report.note(
				`self-signed until a real one comes: browsers warn of it, and HSTS must be off (stack.hstsSeconds: 0)`,
			)
		},
	}
}

/** Key and certificate, both or neither; what stood there is kept as `.bak`. */
async function place(
	{ context: { host }, stack }: CertificateWork,
	certificate: string,
	key: string,
): Promise<void> {
	const paths = pathsOf({ stack })
	await host.files.makeDirectory(dirname(paths.key), 0o755)
	const [oldKey, oldCertificate] = await Promise.all([host.read(paths.key), host.read(paths.certificate)])
	if (oldKey !== undefined && oldCertificate !== undefined) {
		await host.write(`${paths.key}.bak`, oldKey, { mode: 0o600 })
		await host.write(`${paths.certificate}.bak`, oldCertificate, { mode: 0o644 })
	}
	await host.write(paths.key, key, { mode: 0o600 })
	try {
		await host.write(paths.certificate, certificate, { mode: 0o644 })
	} catch (error) {
		if (oldKey === undefined) await host.files.remove(paths.key)
		else await host.write(paths.key, oldKey, { mode: 0o600 })
		throw error
	}
}

/** certbot is there; as Debian and Ubuntu package it. */
export function certbotInstalled({ context: { host } }: CertificateWork): Step {
	return {
		id: "certbot",
		title: "certbot is installed",
		check: async () =>
			(await host.test(command("certbot", "--version")))
				? satisfied("it answers")
				: needed("there is no certbot"),
		apply: async () => {
			const apt = (...words: readonly string[]) =>
				host.execute(
					withOptions(command("apt-get", "--quiet", "-o", "DPkg::Lock::Timeout=300", ...words), {
						environment: { DEBIAN_FRONTEND: "noninteractive" },
					}),
				)
			// A fresh host's lists are empty, or name versions that are gone.
			await apt("update")
			await apt("install", "--yes", "--no-install-recommends", "certbot")
		},
	}
}

/**
 * certbot has a certificate of the authority for this name, with time left.
 * @param force a new one, whatever is left of the old one
 */
export function certificateIssued(work: CertificateWork, { force }: { force: boolean }): Step {
	const { context, stack } = work
	const { host, now } = context
	const { live } = pathsOf(work)
	let before: string | undefined
	return {
		id: "issued",
		title: `a certificate for ${stack.domain} is issued`,
		requires: ["certbot", "certificate-there"],
		async check() {
			const found = await installed(work, live)
			if (found.state !== "there") return needed(found.because)
			before ??= found.leaf.fingerprint
			const refused = whyRefused(found.chain, stack.domain, now())
			if (refused !== undefined) return needed(`the one in ${live}: ${refused}`)
			if (isDue(found.leaf, now())) return needed(`${daysLeft(found.leaf, now())} days are left`)
			if (force && found.leaf.fingerprint === before) return needed("a new one was asked for")
			return satisfied(tell(found.leaf, now()))
		},
		async apply() {
			before ??= ""
			await challengesAreServed(work)
			const { exitCode, stdout, stderr } = await host.execute(certbot(work), {
				allowedExitCodes: [1],
			})
			if (exitCode !== 0) throw refusal(`${stderr}\n${stdout}`, work)
		},
	}
}

function certbot({ context: { host }, stack }: CertificateWork): Command {
	const { certificates, paths } = stack.configuration
	const own = host.path(certificates.directory)
	return command(
		...(["certbot", "certonly", "--non-interactive", "--agree-tos", "--force-renewal"] as const),
		...[
			"--webroot",
			"--webroot-path",
			host.path(paths.acme),
			"--cert-name",
			"comfyume",
			"--domain",
			stack.domain,
		],
		...(certificates.email === undefined
			? ["--register-unsafely-without-email"]
			: ["--email", certificates.email, "--no-eff-email"]),
		...["--server", certificates.server, "--key-type", "ecdsa"],
		...["--config-dir", own, "--work-dir", join(own, "work"), "--logs-dir", join(own, "logs")],
	)
}

/** The authority asks over port 80 for a file in the webroot: what it would not get, it needn't be asked for. */
async function challengesAreServed({ context, stack }: CertificateWork): Promise<void> {
	const { host, signal } = context
	const { paths, ports } = stack.configuration
	const name = `comfyume-${context.randomId()}`
	const directory = `${paths.acme}/.well-known/acme-challenge`
	await host.files.makeDirectory(directory, 0o755)
	await host.write(`${directory}/${name}`, name, { mode: 0o644 })
	const url = `http://${stack.domain}/.well-known/acme-challenge/${name}`
	try {
		const { request } = await import("node:http")
		const answered = await new Promise<string>((resolve, reject) => {
			const asked = request(
				{
					host: "127.0.0.1",
					port: ports.http,
					path: new URL(url).pathname,
					headers: { host: stack.domain },
					agent: false,
					signal: AbortSignal.any([signal, AbortSignal.timeout(10_000)]),
				},
				(response) => {
					let text = ""
					response.on("data", (chunk: Buffer) => {
						text += chunk.toString()
					})
					response.on("error", reject)
					response.on("end", () =>
						resolve(response.statusCode === 200 ? text : `status ${response.statusCode}`),
					)
				},
			)
			asked.on("error", reject)
			asked.end()
		}).catch((error: unknown) => messageOf(error))
		signal.throwIfAborted()
		if (answered !== name)
			throw new OperatorError(`nginx doesn't show here what lies in ${paths.acme}: ${answered}`, {
				hint: `comfyume start --only nginx ${context.spoken}`,
			})
	} finally {
		await host.files.remove(`${directory}/${name}`)
	}
}

// What the authority said stands in certbot's own words.
const refusals: readonly { says: RegExp; means: string; hint: string; exitCode?: 4 }[] = [
	{
		says: /rateLimited|too many /i,
		means: "the authority has issued or refused too many lately",
		hint: "wait: the message says until when; restore the old certificate meanwhile",
	},
	{
		says: /Type:\s*dns|error:dns|NXDOMAIN|no valid A records|DNS problem/i,
		means: "the authority finds no address of the name",
		hint: "dig +short A {domain}",
	},
	{
		says: /Type:\s*(connection|unauthorized)|error:connection|error:unauthorized|Timeout during connect|Invalid response from http/i,
		means:
			"the authority asked the name's address and did not find the challenge: does the name lead here yet?",
		hint: "dig +short A {domain}; until the name leads here, bring the old certificate along: comfyume restore",
	},
	{
		says: /Max retries exceeded|Connection refused|Temporary failure in name resolution|ConnectionError/i,
		means: "the authority can't be reached",
		hint: "curl -sS {server}",
		exitCode: 4,
	},
]

function refusal(said: string, { stack }: CertificateWork): OperatorError {
	const { server, directory } = stack.configuration.certificates
	const known = refusals.find(({ says }) => says.test(said))
	const detail = /^\s*detail:\s*(.+)$/im.exec(said)?.[1] ?? ownWords(said)
	const hint = (known?.hint ?? "tail {log}")
		.replace("{domain}", stack.domain)
		.replace("{server}", server)
		.replace("{log}", `${directory}/logs/letsencrypt.log`)
	return new OperatorError(
		`no certificate was issued, and nothing was replaced: ${known === undefined ? "" : `${known.means}: `}${detail}`,
		{
			hint,
			...(known?.exitCode === undefined ? {} : { exitCode: known.exitCode }),
		},
	)
}

/** What certbot says without what it says each time. */
function ownWords(said: string): string {
	const always =
		/^(Saving debug log|Ask for help|See the logfile|Requesting a|Renewing an|Account registered|An unexpected error)/
	const lines = said
		.split("\n")
		.flatMap((line) => (line.trim() === "" || always.test(line) ? [] : [line.trim()]))
	return lines.slice(0, 3).join(" ") || "certbot doesn't say why"
}

/** What certbot has lies where nginx reads it. */
export function certificateInstalled(work: CertificateWork): Step {
	const { live } = pathsOf(work)
	return placed(work, "installed", ["issued"], async () => {
		const found = await installed(work, live)
		if (found.state !== "there") throw new OperatorError(found.because)
		return found
	})
}

/** A certificate that was bought lies where nginx reads it. */
export function boughtInstalled(
	work: CertificateWork,
	{ certificate, key }: { certificate: string; key: string },
): Step {
	const { context, stack } = work
	return placed(work, "installed", [], async () => {
		const chain = readChain(certificate)
		const refuse = (because: string) => {
			throw new OperatorError(`${because}; nothing was replaced`, { exitCode: exitCodes.refusedByGuard })
		}
		if (chain === undefined) return refuse("the file of --cert holds no certificate in PEM")
		if (!chain.leaf.fits(key)) return refuse("the key of --key doesn't belong to the certificate of --cert")
		const refused = whyRefused(chain, stack.domain, context.now())
		return refused === undefined ? { leaf: chain.leaf, pem: certificate, key } : refuse(refused)
	})
}

type Wanted = { leaf: Certificate; pem: string; key: string }

function placed(
	work: CertificateWork,
	id: string,
	requires: readonly string[],
	want: () => Promise<Wanted>,
): Step {
	const { certificate } = pathsOf(work)
	return {
		id,
		title: `it lies in ${dirname(certificate)}`,
		requires,
		async check() {
			const [wanted, found] = [await want(), await installed(work)]
			if (found.state !== "there") return needed(found.because)
			if (found.pem === wanted.pem && found.key === wanted.key)
				return satisfied(tell(found.leaf, work.context.now()))
			return needed(`another one lies there, ${tell(found.leaf, work.context.now())}`)
		},
		async apply() {
			const { pem, key } = await want()
			await place(work, pem, key)
		},
	}
}

/** nginx serves what lies there: asked over TLS, by the workshop's name. */
export function certificateServed(work: CertificateWork, requires: readonly string[]): Step {
	const { context, stack, docker } = work
	const { host, signal } = context
	const port = stack.configuration.ports.https
	async function look(): Promise<Finding> {
		const found = await installed(work)
		if (found.state !== "there") return needed(found.because)
		const answer = await askDoor({ domain: stack.domain, port, path: "/health/ping", signal })
		if (typeof answer === "string")
			return unknown(`nginx gives no answer: ${answer}`, `comfyume start ${context.spoken}`)
		if (answer.fingerprint === found.leaf.fingerprint)
			return satisfied(`asked over TLS: sha256 ${found.leaf.fingerprint.slice(0, 12)}`)
		return needed(
			`nginx serves another one, until ${answer.validTo === undefined ? "?" : dateOf(answer.validTo)}`,
			`comfyume restart nginx ${context.spoken}`,
		)
	}
	return {
		id: "served",
		title: "nginx serves it",
		requires,
		check: look,
		async apply() {
			if (stack.hasNginx) await docker.run("exec", stack.services.nginx.container, "nginx", "-s", "reload")
			else await host.execute(command("systemctl", "reload", "nginx.service"))
			// Old workers answer until the new ones have started.
			const deadlineMs = performance.now() + 15_000
			while ((await look()).state === "needed" && performance.now() < deadlineMs)
				await pause(200, undefined, { signal })
		},
	}
}

/** What lies there would be trusted, for long enough. Only looks. */
export function certificateRight(work: CertificateWork): Step {
	const { context, stack } = work
	const acme = stack.configuration.certificates.source === "acme"
	const hint = acme
		? `comfyume certificates renew ${context.spoken}`
		: `comfyume certificates install --cert FILE --key FILE ${context.spoken}`
	return {
		id: "certificate",
		title: `the certificate for ${stack.domain}`,
		async check() {
			const found = await installed(work)
			if (found.state !== "there") return needed(found.because, hint)
			const now = context.now()
			const refused = whyRefused(found.chain, stack.domain, now)
			if (refused !== undefined)
				return needed(refused, found.leaf.selfSigned && acme ? hint.replace("renew", "issue") : hint)
			return isLate(found.leaf, now)
				? needed(`${tell(found.leaf, now)}: it ends soon`, hint)
				: satisfied(tell(found.leaf, now))
		},
		apply: async () => {},
	}
}
