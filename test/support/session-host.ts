// Stands in for comfyume on a host: reads its frame, says what it got, and behaves as its first argument says.
import { writeFileSync } from "node:fs"
import { readSession } from "../../src/lib/host/session.ts"

const [behaviour, file] = process.argv.slice(2).filter((word) => word !== "--session")
const say = (text: string) =>
	process.stdout.write(
		`${JSON.stringify({ version: 1, at: new Date().toISOString(), event: "note", level: "info", text })}\n`,
	)

// As the real one does: a hang-up is heard, not died of.
process.on("SIGHUP", () => {})
const { payload, aborted } = await readSession(process.stdin)
say(JSON.stringify(payload))
process.stderr.write("tälk\n")

if (behaviour === "garbage") process.stdout.write("Welcome to Ubuntu\n")
if (behaviour === "unknown") process.stdout.write('{"version":99,"event":"note"}\n')
if (behaviour === "hang" || behaviour === "deaf") {
	const alive = setInterval(() => {}, 1000)
	aborted.addEventListener("abort", () => {
		if (file !== undefined) writeFileSync(file, String(aborted.reason.exitCode))
		if (behaviour === "deaf") return
		say("cleaned up")
		clearInterval(alive)
		process.exitCode = 129
	})
} else {
	process.exitCode = 3
	process.stdin.destroy()
}
