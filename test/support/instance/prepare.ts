// Run by `npm test`: `prepare.ts base` builds the instances' base, `prepare.ts sweep` clears away what a killed test left.
import { ensureBase } from "./base.ts"
import { sweepLeftovers } from "./world.ts"

if (process.argv[2] === "sweep") {
	const removed = await sweepLeftovers()
	if (removed > 0) console.error(`removed ${removed} test world(s) whose process is gone`)
} else {
	await ensureBase((text) => console.error(text))
}
