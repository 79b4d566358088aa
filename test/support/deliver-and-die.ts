// Delivers one file, and ends itself with SIGKILL right before or right after the n-th time it changes something:
// every moment at which a delivery can be ended is tried in turn. Prints how many moments there are when it lives.
// node deliver-and-die.ts <directory> <moment; 0 for none>
import { randomBytes } from "node:crypto"
import fs from "node:fs"
import { syncBuiltinESMExports } from "node:module"
import { join } from "node:path"

const [directory = "", moment = "0"] = process.argv.slice(2)
let moments = 0
const pass = () => {
	if (++moments === Number(moment)) process.kill(process.pid, "SIGKILL")
}
const changes = [
	"linkSync",
	"unlinkSync",
	"renameSync",
	"writeSync",
	"writeFileSync",
	"fsyncSync",
	"mkdirSync",
] as const
for (const name of changes) {
	const original = fs[name] as (...args: unknown[]) => unknown
	Object.assign(fs, {
		[name]: (...args: unknown[]) => {
			pass()
			const value = original.apply(fs, args)
			pass()
			return value
		},
	})
}
syncBuiltinESMExports()

const { operations } = await import("../../src/queue-manager/outputs/operations.ts")
const { deliverFile } = await import("../../src/queue-manager/outputs/deliver.ts")
const { planOutputs } = await import("../../src/queue-manager/outputs/prefix.ts")
const { watchOutputs } = await import("../../src/queue-manager/outputs/watch.ts")
const { fileRecords } = await import("./delivery-records.ts")

const shareRoot = join(directory, "share")
const workflow = JSON.parse(fs.readFileSync(join(directory, "workflow.json"), "utf8")) as Record<
	string,
	unknown
>
const plan = planOutputs(workflow, { job: "job-1", attempt: 1, createdAt: new Date(0) })
const clock = { nowMs: () => 0, wait: async () => {} }
const watch = watchOutputs({ files: operations, shareRoot, plan, clock })
await watch.look()
const [file] = watch.files()
if (file === undefined) throw new Error("there is no file to deliver")
const delivery = await deliverFile(
	{
		files: operations,
		records: fileRecords(join(directory, "records.json")),
		shareRoot,
		outputsRoot: join(directory, "outputs"),
		randomId: () => randomBytes(4).toString("hex"),
	},
	{ job: "job-1", attempt: "a1", user: "user001", plan },
	file,
)
process.stdout.write(JSON.stringify({ moments, delivery }))
