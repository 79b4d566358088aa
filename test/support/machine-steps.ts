// Runs steps about a machine on the machine itself, by the real runner: a test starts it inside an instance. Reads what
// to do from stdin, writes the runner's events to stdout.
import { text } from "node:stream/consumers"
import { parseConfiguration } from "../../src/lib/config/configuration.ts"
import { secretsFromPayload } from "../../src/lib/config/secrets.ts"
import { readOnlyHost } from "../../src/lib/host/host.ts"
import { localHost } from "../../src/lib/host/local.ts"
import { jsonReporter } from "../../src/lib/plan/reporters/json.ts"
import { runPlan } from "../../src/lib/plan/run.ts"
import type { Step } from "../../src/lib/plan/step.ts"
import { Secret } from "../../src/lib/secret.ts"
import type { StepContext } from "../../src/lib/steps/context.ts"
import { operatorsAreIn, operatorsReachUser } from "../../src/lib/steps/machine/access.ts"
import { dockerIsThere } from "../../src/lib/steps/machine/docker.ts"
import { envFilesAreRight } from "../../src/lib/steps/machine/env-files.ts"
import { jailIsLive } from "../../src/lib/steps/machine/fail2ban.ts"
import { firewallIsExact } from "../../src/lib/steps/machine/firewall.ts"
import { configurationIsInstalled, programIsInstalled } from "../../src/lib/steps/machine/own-files.ts"
import { packagesAreThere } from "../../src/lib/steps/machine/packages.ts"
import { scratchDirectories, scratchIsMounted } from "../../src/lib/steps/machine/scratch.ts"
import { secretsAreInstalled, secretsReachKeyring } from "../../src/lib/steps/machine/secrets-file.ts"
import {
	shareDirectories,
	shareIsMounted,
	shareIsOurs,
	shareIsReachable,
} from "../../src/lib/steps/machine/share.ts"
import { storagePathsAreDirect } from "../../src/lib/steps/machine/storage-paths.ts"
import { tailnetIsJoined } from "../../src/lib/steps/machine/tailnet.ts"
import { ubuntuProIsAttached } from "../../src/lib/steps/machine/ubuntu-pro.ts"
import { platformUser, userIsComplete } from "../../src/lib/steps/machine/user.ts"

export type MachineRun = {
	/** comfyume.yaml, with one environment in it. */
	configuration: string
	/** Ids, in their order. */
	steps: readonly string[]
	mode: "dry-run" | "verify" | "apply"
	formatScratch?: string
	token?: string
	lockWaitMs?: number
	sharePort?: number
	/** Made-up ones. */
	secrets?: Record<string, string>
	packageRoot?: string
}

const run = JSON.parse(await text(process.stdin)) as MachineRun
const [environment] = Object.values(
	parseConfiguration(run.configuration, "/etc/comfyume/comfyume.yaml").environments,
)
const [hostConfiguration] = environment?.hosts ?? []
if (environment === undefined || hostConfiguration === undefined)
	throw new Error("no environment with a host")

const { signal } = new AbortController()
const machine = localHost({ name: hostConfiguration.name, environment: process.env, signal })
const host = run.mode === "apply" ? machine : readOnlyHost(machine)
const context = {
	...{ environment, hostConfiguration, host, signal, spoken: `--env ${environment.name}` },
	now: () => new Date(),
} as StepContext

const secrets = secretsFromPayload(new Secret(JSON.stringify({ version: 1, secrets: run.secrets ?? {} })))

const steps: Readonly<Record<string, () => Step>> = {
	access: () => operatorsAreIn(context),
	"user-access": () => operatorsReachUser(context),
	packages: () =>
		packagesAreThere(context, run.lockWaitMs === undefined ? {} : { lockWaitMs: run.lockWaitMs }),
	docker: () => dockerIsThere(context),
	"ubuntu-pro-attached": () =>
		ubuntuProIsAttached(context, run.token === undefined ? undefined : new Secret(run.token)),
	"share-reachable": () =>
		shareIsReachable(context, run.sharePort === undefined ? {} : { port: run.sharePort }),
	share: () => shareIsMounted(context),
	"share-sentinel": () => shareIsOurs(context),
	"share-directories": () => shareDirectories(context),
	scratch: () => scratchIsMounted(context, run.formatScratch),
	"scratch-directories": () => scratchDirectories(context),
	firewall: () => firewallIsExact(context),
	"fail2ban-jail": () => jailIsLive(context),
	user: () => platformUser(context),
	"user-complete": () => userIsComplete(context),
	"tailscale-is-up": () =>
		tailnetIsJoined(context, run.token === undefined ? undefined : new Secret(run.token)),
	program: () => programIsInstalled(context, run.packageRoot ?? ""),
	configuration: () => configurationIsInstalled(context, run.configuration),
	secrets: () => secretsAreInstalled(context, secrets),
	keyring: () => secretsReachKeyring(context),
	"env-files": () => envFilesAreRight(context),
	"storage-paths": () => storagePathsAreDirect(context),
}

const { exitCode } = await runPlan(
	{
		command: "machine",
		environment: environment.name,
		host: host.name,
		place: host.place,
		steps: run.steps.map((id) => {
			const step = steps[id]
			if (step === undefined) throw new Error(`no step ${id}`)
			const made = step()
			// A step alone shows what it asks by itself.
			return { ...made, requires: (made.requires ?? []).filter((before) => run.steps.includes(before)) }
		}),
	},
	{
		dryRun: run.mode === "dry-run",
		checksOnly: run.mode === "verify",
		now: () => new Date(),
		signal,
		reporter: jsonReporter({ out: (line) => void process.stdout.write(line) }),
	},
)
process.exitCode = exitCode
