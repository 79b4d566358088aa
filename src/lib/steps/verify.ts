// The checklist of a server that is really back: one line per fact, asked of what answers for it. Looks alone; a restore
// ends with it.
import type { ArchiveArtifact, Artifact } from "../artifacts/catalogue.ts"
import { readCheckout } from "../artifacts/git.ts"
import { stackOf } from "../config/environment.ts"
import type { Secrets } from "../config/secrets.ts"
import { OperatorError } from "../errors.ts"
import { command, withOptions } from "../host/command.ts"
import type { Manifest } from "../models/manifest.ts"
import { needed, type Step, satisfied } from "../plan/step.ts"
import { certificateRight, certificateServed } from "./certificates.ts"
import { checkoutOf } from "./checkout.ts"
import type { StepContext } from "./context.ts"
import { hostKeysOnTheWire, tailscaleIsUp } from "./identity.ts"
import { operatorsAreIn, operatorsReachUser } from "./machine/access.ts"
import { dockerIsThere } from "./machine/docker.ts"
import { envFilesAreRight } from "./machine/env-files.ts"
import { jailIsLive } from "./machine/fail2ban.ts"
import { firewallIsExact } from "./machine/firewall.ts"
import { configurationIsInstalled } from "./machine/own-files.ts"
import { packagesAreThere } from "./machine/packages.ts"
import { scratchDirectories, scratchIsMounted } from "./machine/scratch.ts"
import { secretsAreInstalled, secretsReachKeyring } from "./machine/secrets-file.ts"
import { shareDirectories, shareIsMounted, shareIsOurs } from "./machine/share.ts"
import { storagePathsAreDirect } from "./machine/storage-paths.ts"
import { tailnetIsJoined } from "./machine/tailnet.ts"
import { userIsComplete } from "./machine/user.ts"
import type { OpenStack } from "./stack.ts"
import { containersStep } from "./stack-status.ts"
import { backupTimers, certificatesTimer, program } from "./timer-files.ts"
import { timerState } from "./timer-states.ts"
import { modelChecks } from "./verify-models.ts"
import {
	doorLine,
	extensionsLine,
	filesLine,
	hostNginxLine,
	imagesLine,
	line,
	queueAfarLine,
	queueLine,
	redisAfarLine,
	redisLine,
	restartsLine,
	usersLine,
} from "./verify-stack.ts"

export type Verifying = {
	/** All of this host's. */
	artifacts: readonly Artifact[]
	/** Of comfyume.yaml, as this run has it. */
	configuration: { text: string }
	secrets: Pick<Secrets, "find">
	/** Which models must be on the share; undefined where nobody wants to know. */
	manifest: Manifest | undefined
	/** Undefined where no stack is described. */
	open: OpenStack | undefined
}

/** What an operator would type for the same answer. */
const asked: Readonly<Record<string, string>> = {
	"tailscale-is-up": "tailscale ip -4; tailscale status; tailscale debug prefs",
	"ssh-on-the-wire": "ssh-keyscan 127.0.0.1; ssh-keygen -lf /etc/ssh/ssh_host_*.pub",
	firewall: "ufw status verbose; ufw show added",
	"fail2ban-jail": "fail2ban-client status sshd; fail2ban-client get sshd …",
	"user-complete": "getent passwd; id; sudo --list",
	packages: "dpkg-query --show",
	docker: "docker info; docker compose version",
	access: "/root/.ssh/authorized_keys",
	"user-access": "the user's .ssh/authorized_keys",
	share: "findmnt; /etc/fstab",
	"share-sentinel": "the file ENVIRONMENT on the share",
	"share-directories": "stat; test -w as user 1000",
	scratch: "findmnt; /etc/fstab",
	"scratch-directories": "stat; test -w as user 1000",
	configuration: "/etc/comfyume/comfyume.yaml, /etc/comfyume/environment",
	secrets: "/etc/comfyume/secrets.env, names alone",
	keyring: "systemctl is-enabled; keyctl search @u",
	"env-files": "stat; comfyume env check",
	"storage-paths": "readlink; MODELS_PATH and the like",
	containers: "docker inspect; docker compose config --hash",
	certificate: "openssl x509 -in cert.pem",
	served: "openssl s_client, by the workshop's name",
	"models-share": "comfyume verify-models --from share",
	"models-frontends": "docker exec … find /models",
}

/**
 * The lines for this host's role, side by side as far as none needs another.
 * @throws {OperatorError} for what makes the list impossible, as a manifest that can't be read
 */
export async function verifySteps(context: StepContext, verifying: Verifying): Promise<Step[]> {
	const lines = [
		...machineLines(context, verifying),
		...verifying.artifacts.flatMap((artifact) => checkoutLine(context, artifact)),
		...(verifying.open === undefined ? [] : stackLines(context, verifying.open)),
		...(await modelLines(context, verifying)),
		...timerLines(context),
	]
	return lines.map((step) => judged({ asked: asked[step.id] ?? step.title, ...step, lane: step.id }, lines))
}

/** What truly follows from another line's fault is not told as a fault of its own. */
const follows: Readonly<Record<string, readonly string[]>> = {
	"user-access": ["user-complete"],
	"share-sentinel": ["share"],
	"share-directories": ["share", "share-sentinel"],
	"models-share": ["share", "share-sentinel"],
	"models-frontends": ["share", "share-sentinel", "containers"],
	files: ["share", "scratch"],
	"scratch-directories": ["scratch"],
	"backup-dry-run": ["share", "share-sentinel", "configuration", "secrets"],
	images: ["docker"],
	containers: ["docker"],
	restarts: ["containers"],
	extensions: ["containers"],
	// One frontend that is down says nothing of the door and of Redis, which answer for themselves.
	redis: ["docker"],
	door: ["docker"],
	queue: ["door", "redis"],
	users: ["door", "containers"],
	served: ["door", "certificate"],
}

/** Its check alone, whose answer stands: nothing is ever tried to put it right. */
function judged(step: Step, all: readonly Step[]): Step {
	const requires = (follows[step.id] ?? []).filter((id) => all.some((other) => other.id === id))
	return {
		...step,
		requires,
		async check(report) {
			const finding = await step.check(report)
			if (finding.state === "satisfied") return finding
			const { because, hint } = finding
			throw new OperatorError(because, hint === undefined ? {} : { hint })
		},
		apply: () => Promise.reject(new Error("looking changes nothing")),
	}
}

function machineLines(context: StepContext, { artifacts, configuration, secrets }: Verifying): Step[] {
	const { environment, host, hostConfiguration } = context
	const { share, scratch, keyring } = environment
	const { tailnet, tailscaleAddress } = hostConfiguration
	const hostKeys = artifacts.find(
		(artifact): artifact is ArchiveArtifact =>
			artifact.kind === "archive" && artifact.name === "ssh-host-keys",
	)
	const identity =
		tailscaleAddress !== undefined
			? [tailscaleIsUp(context, tailscaleAddress, [])]
			: tailnet === "join"
				? [tailnetIsJoined(context, undefined)]
				: []
	return [
		...identity,
		line("ssh", "SSH's unit", "systemctl is-active ssh ssh.socket", async () => {
			if (host.standIn) return satisfied("stand-in: a directory has no sshd")
			const isActive = (unit: string) => host.test(command("systemctl", "is-active", "--quiet", unit))
			if (await isActive("ssh")) return satisfied("active")
			// Ubuntu 24.04 starts it with the first login after a boot.
			if (await isActive("ssh.socket"))
				return satisfied("ssh.socket listens, and starts it with the next login")
			return needed("ssh is not running", "systemctl status ssh")
		}),
		...(hostKeys === undefined || host.standIn ? [] : [hostKeysOnTheWire(context, hostKeys, [])]),
		firewallIsExact(context),
		jailIsLive(context),
		userIsComplete(context),
		packagesAreThere(context),
		dockerIsThere(context),
		operatorsAreIn(context),
		operatorsReachUser(context),
		...(share === undefined
			? []
			: [shareIsMounted(context), shareIsOurs(context), shareDirectories(context)]),
		...(scratch === undefined ? [] : [scratchIsMounted(context, undefined), scratchDirectories(context)]),
		configurationIsInstalled(context, configuration.text),
		secretsAreInstalled(context, secrets),
		...(keyring ? [secretsReachKeyring(context)] : []),
		envFilesAreRight(context),
		storagePathsAreDirect(context),
	]
}

/** The checkout is of the configured remote and branch, at the pinned commit where one is pinned, and clean. */
function checkoutLine(context: StepContext, artifact: Artifact): Step[] {
	if (artifact.kind !== "git") return []
	const { host, environment, spoken } = context
	const { path, remote, branch } = environment.git[artifact.checkout]
	const { commit } = environment.git[artifact.checkout]
	return [
		line(artifact.name, artifact.name, `git -C ${path} status`, async () => {
			const state = await readCheckout(host, checkoutOf(context, artifact))
			const hint = `comfyume restore ${spoken} --only ${artifact.name}`
			if (state.state !== "present")
				return needed(state.state === "absent" ? `${path} is not there` : state.because, hint)
			if (state.remote !== remote) return needed(`it comes from ${state.remote}, not from ${remote}`, hint)
			if (state.branch !== branch) return needed(`it stands on ${state.branch}, not on ${branch}`, hint)
			if (commit !== undefined && state.commit !== commit)
				return needed(`it stands at ${state.commit.slice(0, 12)}, pinned is ${commit.slice(0, 12)}`, hint)
			if (state.changes.length > 0)
				return needed(`changed and in no commit: ${state.changes.join(", ")}`, `git -C ${path} diff`)
			const pinned = commit === undefined ? "; no commit is pinned to compare with" : ", as pinned"
			return satisfied(`${branch} at ${state.commit.slice(0, 12)}, clean${pinned}`)
		}),
	]
}

/** A GPU host's: its workers, and what they find of the app server over the VPN. */
function workerLines(context: StepContext, open: OpenStack): Step[] {
	return [
		imagesLine(context, open),
		containersStep(context, open),
		restartsLine(context, open),
		redisAfarLine(context, open),
		queueAfarLine(context, open),
	]
}

function stackLines(context: StepContext, open: OpenStack): Step[] {
	if (open.stack.role === "worker") return workerLines(context, open)
	const { environment } = context
	const work = { context, stack: open.stack, docker: open.docker }
	const certificate = certificateRight(work)
	return [
		filesLine(context, open),
		imagesLine(context, open),
		containersStep(context, open),
		redisLine(context, open),
		doorLine(context, open),
		queueLine(context, open),
		usersLine(context, open),
		{
			...certificate,
			async check(report) {
				const finding = await certificate.check(report)
				// A rehearsal has no name that an authority would vouch for.
				return finding.state !== "satisfied" &&
					environment.allowStandIns &&
					/self-signed/.test(finding.because)
					? satisfied(`stand-in: ${finding.because}`)
					: finding
			},
		},
		certificateServed(work, []),
		extensionsLine(context, open),
		hostNginxLine(context, open),
	]
}

async function modelLines(context: StepContext, { manifest, open }: Verifying): Promise<Step[]> {
	const { environment, spoken } = context
	if (environment.share === undefined || manifest === undefined) return []
	const steps = await modelChecks(context, manifest, {
		...{ level: "structure", deep: false, from: "share", containers: [] },
	})
	if (open === undefined || open.stack.role === "worker" || steps.some(({ id }) => id === "models-frontends"))
		return steps
	return [
		...steps,
		line("models-frontends", "models as frontends see them", "docker ps", async () =>
			needed("no frontend runs that could be asked", `comfyume start ${spoken}`),
		),
	]
}

const dryRunTimeoutMs = 10 * 60_000

function timerLines(context: StepContext): Step[] {
	const { environment, host, hostConfiguration, spoken } = context
	const acme = environment.stack !== undefined && stackOf(environment).certificates.source === "acme"
	// A GPU host has no door, and no certificate for it: a restore makes no timer there either.
	const timers = [...backupTimers, ...(acme && hostConfiguration.role === "app" ? [certificatesTimer] : [])]
	return [
		...timers.map((timer) => ({
			...timerState(context, timer),
			asked: `systemctl show comfyume-${timer.name}`,
		})),
		line("backup-dry-run", "a backup as its timer would run it", `${program} backup --dry-run`, async () => {
			if (host.standIn) return satisfied("stand-in: a directory runs nothing by itself")
			const asked = withOptions(command(program, "backup", "--dry-run", "--quiet"), {
				timeoutMs: dryRunTimeoutMs,
			})
			const { exitCode, stderr } = await host.capture(asked, {
				allowedExitCodes: Array.from({ length: 255 }, (_, index) => index + 1),
			})
			if (exitCode === 0) return satisfied("it would run: exit 0")
			const said = stderr.trim().split("\n").slice(0, 3).join(" | ")
			return needed(`exit ${exitCode}: ${said}`, `comfyume backup ${spoken} --dry-run`)
		}),
	]
}
