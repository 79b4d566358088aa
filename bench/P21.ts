// P21: a fresh machine to a verified server of twenty users, in one command from the operator's machine: packages, mounts,
// identity, data, container images from archives, 25 containers, timers, and the checklist. Step by step.
import { isQuick, median, publish } from "./support/measure.ts"
import { makeServer, must } from "./support/whole.ts"

const rounds = isQuick ? 1 : 3

const { servers, server, identity } = await makeServer()
await using _servers = servers
await server.destroy()

const runsMs: number[] = []
let parts: Record<string, number> = {}
for (let round = 0; round < rounds; round++) {
	await using fresh = await servers.freshServer(`server-${round}`)
	servers.pointAt(fresh, identity)
	const fingerprint = await servers.workshop.consoleFingerprint(fresh)
	const startedAt = performance.now()
	const said = await must(
		servers.comfyume(
			...["restore", "--identity-is-free", "--host-fingerprint", fingerprint],
			...["--format-scratch", servers.scratchDevice],
		),
	)
	runsMs.push(Math.round(performance.now() - startedAt))
	const slow = Object.entries(said.tookMs).filter(([, ms]) => ms >= 500)
	parts = Object.fromEntries(slow)
	console.log(`${runsMs.at(-1)} ms`, parts)
}
publish(
	"P21",
	"a fresh machine to verified, 20 users",
	[{ what: "one command", ratio: median(runsMs) / 1000, goal: 180, most: true, unit: " s" }],
	{
		runsMs: { restore: runsMs },
		/** Of the last round, in milliseconds; containers of one batch run beside those of others. */
		stepsOfHalfASecondAndMore: parts,
		notes: [
			`${rounds} rounds, no warm-up; ComfyUI, share, disk, object store and Tailscale are stand-ins, on the same two cores.`,
		],
	},
)
