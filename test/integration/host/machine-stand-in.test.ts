// Under a directory that stands in for a machine, the steps about the machine say that they have nothing to do, and do
// nothing: not to the directory, and not to the machine that runs the tests.
import { mkdirSync, mkdtempSync, readdirSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, test } from "vitest"
import { parseConfiguration } from "../../../src/lib/config/configuration.ts"
import { readOnlyHost } from "../../../src/lib/host/host.ts"
import { localHost } from "../../../src/lib/host/local.ts"
import type { Report } from "../../../src/lib/plan/step.ts"
import { Secret } from "../../../src/lib/secret.ts"
import type { StepContext } from "../../../src/lib/steps/context.ts"
import { operatorsAreIn, operatorsReachUser } from "../../../src/lib/steps/machine/access.ts"
import { dockerIsThere } from "../../../src/lib/steps/machine/docker.ts"
import { packagesAreThere } from "../../../src/lib/steps/machine/packages.ts"
import { scratchDirectories, scratchIsMounted } from "../../../src/lib/steps/machine/scratch.ts"
import { shareIsMounted, shareIsReachable } from "../../../src/lib/steps/machine/share.ts"
import { ubuntuProIsAttached } from "../../../src/lib/steps/machine/ubuntu-pro.ts"

test("all of them are satisfied, and say why", async () => {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-stand-in-"))
	try {
		mkdirSync(join(directory, "share"))
		const { environments } = parseConfiguration(
			`version: 1
environments:
  testing:
    domain: testing.example.test
    allowStandIns: true
    hosts: [{ name: app-1, role: app, connection: directory, directory: ./server, tailnet: join }]
    operators: ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI${"a".repeat(43)} a@example.test"]
    share: { filesystem: directory, directory: ./share }
    scratch: { device: /dev/vdz, path: /mnt/scratch }
    git:
      project: { remote: "https://git.example.test/p.git", branch: main, path: /home/dev/p }
      scripts: { remote: "https://git.example.test/s.git", branch: main, path: /home/dev/s }
`,
			join(directory, "comfyume.yaml"),
		)
		const environment = environments["testing"]
		const server = join(directory, "server")
		mkdirSync(server)
		const context = {
			...{ environment, hostConfiguration: environment?.hosts[0], spoken: "--env testing" },
			host: readOnlyHost(localHost({ name: "app-1", root: server, environment: process.env })),
			signal: new AbortController().signal,
			now: () => new Date(),
		} as unknown as StepContext
		for (const step of [
			operatorsAreIn(context),
			operatorsReachUser(context),
			packagesAreThere(context),
			dockerIsThere(context),
			ubuntuProIsAttached(context, new Secret("made-up-token")),
			shareIsReachable(context),
			shareIsMounted(context),
			scratchIsMounted(context, "/dev/vdz"),
			scratchDirectories(context),
		]) {
			const finding = await step.check({} as Report)
			expect(finding, step.id).toMatchObject({
				state: "satisfied",
				because: expect.stringMatching(/a directory stands in|stand-in: a directory/),
			})
		}
		expect(readdirSync(server)).toEqual([])
	} finally {
		rmSync(directory, { recursive: true })
	}
})
