// What of the machine's steps can be told without a machine.
import { describe, expect, test } from "vitest"
import { parseConfiguration } from "../../../src/lib/config/configuration.ts"
import { OperatorError } from "../../../src/lib/errors.ts"
import { renderEntry } from "../../../src/lib/formats/fstab.ts"
import { parseMountCommand } from "../../../src/lib/formats/mount-command.ts"
import type { Command } from "../../../src/lib/host/command.ts"
import type { LocalHost } from "../../../src/lib/host/local.ts"
import type { Report, Step } from "../../../src/lib/plan/step.ts"
import type { StepContext } from "../../../src/lib/steps/context.ts"
import { tailscaleIsUp } from "../../../src/lib/steps/identity.ts"
import { refuseSystemDisk } from "../../../src/lib/steps/machine/block-device.ts"
import { mountUnit, orderAfter } from "../../../src/lib/steps/machine/docker.ts"
import { firewallIsExact } from "../../../src/lib/steps/machine/firewall.ts"
import { packagesFor } from "../../../src/lib/steps/machine/packages.ts"
import { entryOf } from "../../../src/lib/steps/machine/share.ts"
import { tailnetIsJoined } from "../../../src/lib/steps/machine/tailnet.ts"
import { platformUser, userIsComplete } from "../../../src/lib/steps/machine/user.ts"
import { machineFirst, placesOfContainers } from "../../../src/lib/steps/restore-machine.ts"
import { timerSteps } from "../../../src/lib/steps/restore-stack.ts"
import { verifySteps } from "../../../src/lib/steps/verify.ts"

const contextFor = (more: string, host = "") => {
	const { environments } = parseConfiguration(
		`version: 1
environments:
  testing:
    domain: testing.example.test
    hosts: [{ name: app-1, role: app, address: 203.0.113.10${host} }]
    git:
      project: { remote: "https://git.example.test/p.git", branch: main, path: /home/dev/p }
      scripts: { remote: "https://git.example.test/s.git", branch: main, path: /home/dev/s }
${more}`,
		"/x/comfyume.yaml",
	)
	const environment = environments["testing"]
	const [hostConfiguration] = environment?.hosts ?? []
	if (environment === undefined || hostConfiguration === undefined) throw new Error("no host")
	return { environment, hostConfiguration }
}

describe("packages", () => {
	test("what is installed follows from what the environment has", () => {
		const plain = packagesFor(contextFor(""))
		for (const name of ["fail2ban", "ufw", "jq", "keyutils", "zstd", "apache2-utils", "redis-tools", "zsh"])
			expect(plain).toContain(name)
		for (const name of ["tailscale", "nfs-common", "certbot", "docker.io"]) expect(plain).not.toContain(name)
		const all = packagesFor(
			contextFor(
				`    share: { mount: "mount -t nfs nfs.example.test:/share /mnt/sfs" }
    stack: { certificates: { source: acme, email: ops@example.test } }
    packages: { extra: [htop, jq] }\n`,
				", tailnet: join",
			),
		)
		for (const name of ["tailscale", "nfs-common", "certbot", "htop"]) expect(all).toContain(name)
		expect(all.filter((name) => name === "jq")).toHaveLength(1)
		expect(all).not.toContain("docker.io")
	})
})

test("the share's line has the options of the mount command, and lets the machine boot without it", () => {
	const lineFor = (written: string) => {
		const parsed = parseMountCommand(written)
		if ("problem" in parsed) throw new Error(parsed.problem.message)
		return renderEntry(entryOf(parsed.command))
	}
	expect(lineFor("sudo mount -t nfs -o nconnect=16 nfs.example.test:/Vault-1 /mnt/sfs")).toBe(
		"nfs.example.test:/Vault-1 /mnt/sfs nfs nconnect=16,nofail,_netdev 0 0",
	)
	expect(lineFor("mount -t nfs4 -o nofail nfs.example.test:/x /mnt/sfs")).toBe(
		"nfs.example.test:/x /mnt/sfs nfs4 nofail,_netdev 0 0",
	)
	expect(lineFor("mount --bind /outside /mnt/sfs")).toBe("/outside /mnt/sfs none bind,nofail,_netdev 0 0")
})

test("a mount's unit is called as systemd calls it", () => {
	// Each by `systemd-escape --path --suffix=mount`.
	expect(["/mnt/sfs", "/mnt/a b-c/", "/mnt/.x", "/.x/y", "/mnt//é"].map(mountUnit)).toEqual([
		"mnt-sfs.mount",
		"mnt-a\\x20b\\x2dc.mount",
		"mnt-.x.mount",
		"\\x2ex-y.mount",
		"mnt-\\xc3\\xa9.mount",
	])
	expect(orderAfter(["/mnt/sfs", "/mnt/scratch"])).toContain("After=mnt-sfs.mount mnt-scratch.mount\n")
})

describe("the system's disk", () => {
	// As `findmnt` and `lsblk --inverse` answer on a cloud's machine: / on vda1, /boot on a volume on vdc.
	const parents: Readonly<Record<string, string>> = {
		"/dev/vda": "254:0",
		"/dev/vda1": "254:1 254:0",
		"/dev/vda2": "254:2 254:0",
		"/dev/vdb": "254:16",
		"/dev/vdc": "254:32",
		"/dev/mapper/boot": "253:0 254:32",
	}
	const sources: Readonly<Record<string, string>> = { "/": "/dev/vda1", "/boot": "/dev/mapper/boot" }
	const host = {
		capture: async ({ program, args }: Command) => {
			const about = args.at(-1) ?? ""
			const stdout =
				program === "lsblk" ? (parents[about] ?? "").replaceAll(" ", "\n") : (sources[about] ?? "overlay")
			return { exitCode: 0, stdout: `${stdout}\n`, stderr: "" }
		},
	} as unknown as LocalHost

	test.each(["/dev/vda", "/dev/vda1", "/dev/vda2", "/dev/vdc"])("%s is refused", async (device) => {
		await expect(refuseSystemDisk(host, device)).rejects.toMatchObject({
			exitCode: 8,
			message: expect.stringContaining(`${device} is a part of the disk that /`),
		})
	})

	test("another disk is let through", async () => {
		await expect(refuseSystemDisk(host, "/dev/vdb")).resolves.toBeUndefined()
	})
})

describe("the firewall, of rules that `ufw show added` has", () => {
	const all = ["22/tcp", "22/tcp (v6)", "443/tcp", "443/tcp (v6)"]
	const rowOf = (to: string) => {
		const action = to.startsWith("22") ? "LIMIT IN" : "ALLOW IN"
		return `${to.padEnd(26)} ${action.padEnd(11)} Anywhere${to.endsWith("(v6)") ? " (v6)" : ""}`
	}
	const check = (rows: readonly string[]) => {
		const texts: Readonly<Record<string, string>> = {
			"ufw show added": "Added user rules:\nufw limit 22/tcp\nufw allow 443/tcp\n",
			"ufw status verbose": [
				"Status: active",
				"Default: deny (incoming), allow (outgoing), disabled (routed)",
				"To                         Action      From",
				"--                         ------      ----",
				...rows.map(rowOf),
				"",
			].join("\n"),
		}
		const kernel = "-P INPUT DROP\n-A INPUT -j ufw-before-input\n"
		const host = {
			...{ name: "app-1", standIn: false, test: async () => true },
			read: async () => Buffer.from("ENABLED=yes\n"),
			capture: async ({ program, args }: Command) => ({
				...{ exitCode: 0, stderr: "" },
				stdout: texts[[program, ...args].join(" ")] ?? kernel,
			}),
		} as unknown as LocalHost
		const given = contextFor("", ', firewall: ["22/tcp limit", "443/tcp"]')
		return firewallIsExact({ ...given, host } as unknown as StepContext).check({} as Report)
	}

	test.each([
		["for both", all],
		["for IPv4 alone, where ufw leaves IPv6 alone", ["22/tcp", "443/tcp"]],
	])("is right when they are in force %s", async (_, rows) => {
		expect(await check(rows)).toMatchObject({ state: "satisfied" })
	})

	test.each(["443/tcp", "443/tcp (v6)", "22/tcp"])(
		"is wrong when %s was deleted by its number",
		async (gone) => {
			const place = gone.replace(" (v6)", "")
			expect(await check(all.filter((to) => to !== gone))).toMatchObject({
				state: "needed",
				because: expect.stringMatching(new RegExp(`^${place}[a-z ]* is configured and not in force$`)),
			})
		},
	)
})

test("containers wait for the share, for its being this environment's, and for scratch, by the steps of the machine", () => {
	const context = contextFor(`    share: { mount: "mount -t nfs nfs.example.test:/share /mnt/sfs" }
    scratch: { device: /dev/vdb }
`)
	const needed = placesOfContainers(context.environment)
	expect(needed).toEqual(["share", "share-sentinel", "scratch"])
	const made = machineFirst(context as StepContext, { secrets: { find: () => undefined } } as never, {})
	expect(made.map(({ id }) => id)).toEqual(expect.arrayContaining(needed))
	expect(placesOfContainers(contextFor("").environment)).toEqual([])
})

describe("a fresh machine, on which nothing is installed yet, as a dry run finds it", () => {
	const nothing = (program: string) => Promise.reject(new OperatorError(`${program} is not installed`))
	const host = {
		...{ name: "app-1", standIn: false, path: (path: string) => path },
		test: async () => false,
		read: async () => undefined,
		capture: async ({ program }: Command) =>
			program === "getent" ? { exitCode: 2, stdout: "", stderr: "" } : nothing(program),
	} as unknown as LocalHost
	const context = { ...contextFor("", ", tailnet: join"), host } as unknown as StepContext
	const report = { note: () => {} } as unknown as Report

	const cases: readonly (readonly [name: string, step: () => Step, because: RegExp])[] = [
		["the firewall", () => firewallIsExact(context), /ufw/],
		["the user", () => userIsComplete(context), /no user dev/],
		["the tailnet, as a new machine", () => tailnetIsJoined(context, undefined), /in no tailnet/],
		["the tailnet, as who it was", () => tailscaleIsUp(context, "100.64.0.10", []), /not running/],
		...timerSteps(context, { machine: true, dryRun: true }).map(
			(step) => [step.id, () => step, /is missing/] as const,
		),
	]

	test.each(cases)("%s is still to be done, and no failure", async (_, step, because) => {
		expect(await step().check(report)).toMatchObject({
			state: "needed",
			because: expect.stringMatching(because),
		})
	})

	test("timers fail in a run in which nobody brings what they miss", async () => {
		const [runs] = timerSteps(context, { machine: false, dryRun: true })
		await expect(runs?.check(report)).rejects.toThrow(/is missing/)
	})
})

test("a GPU host has no certificate's timer in the checklist, as a restore makes none", async () => {
	const more = `    stack: { certificates: { source: acme, email: ops@example.test } }\n`
	const timersOf = async (role: "app" | "worker") => {
		const { environment, hostConfiguration } = contextFor(more)
		const context = { environment, hostConfiguration: { ...hostConfiguration, role } } as StepContext
		const verifying = { artifacts: [], configuration: { text: "" }, secrets: { find: () => undefined } }
		const lines = await verifySteps(context, { ...verifying, manifest: {} as never, open: undefined })
		const restored = timerSteps(context, { machine: false, dryRun: false })
		const timers = (steps: readonly Step[]) =>
			steps.map(({ id }) => id).filter((id) => id.startsWith("timer-"))
		expect(timers(lines)).toEqual(timers(restored))
		return timers(lines)
	}
	expect(await timersOf("app")).toContain("timer-certificates")
	expect(await timersOf("worker")).not.toContain("timer-certificates")
})

test("where a directory stands in, no user is made on the machine that it lies on", async () => {
	const ran: string[] = []
	const run = async ({ program }: Command) => {
		ran.push(program)
		return { exitCode: 2, stdout: "", stderr: "" }
	}
	const host = { standIn: true, test: async () => false, capture: run, execute: run } as unknown as LocalHost
	const context = { ...contextFor(""), host } as unknown as StepContext
	for (const step of [platformUser(context), userIsComplete(context)])
		expect(await step.check({} as Report)).toMatchObject({ state: "satisfied" })
	expect(ran).toEqual([])
})
