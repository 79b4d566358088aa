// P20: a whole stack of 20 users, the platform's 24 containers and the auth gate, from the first container's creation until
// all are healthy. A real Docker Engine; the images are there; ComfyUI is a stand-in. Needs root.
import { execFileSync } from "node:child_process"
import { openStackWorld } from "../test/support/stack-world.ts"
import { isQuick, median, publish, root } from "./support/measure.ts"

execFileSync(process.execPath, ["scripts/release.ts"], { cwd: root })
await using world = await openStackWorld()
const rendered = await world.comfyume("generate-users")
if (rendered.exitCode !== 0) throw new Error(rendered.stderr)

const startMs: number[] = []
for (let round = 0; round < (isQuick ? 1 : 3); round++) {
	const startedAt = performance.now()
	await world.compose("up", "--detach", "--wait", "--wait-timeout", "280")
	startMs.push(Math.round(performance.now() - startedAt))
	await world.compose("down", "--timeout", "1", "--volumes")
}
publish(
	"P20",
	"24 containers and the auth gate, until all are healthy",
	[{ what: "in seconds", ratio: median(startMs) / 1000, goal: 40, stretch: 25, most: true, unit: " s" }],
	{
		runsMs: { start: startMs },
		tools: {},
		notes: [
			"By `docker compose up --wait`; frontends are a stand-in for ComfyUI, which itself takes longer.",
		],
	},
)
