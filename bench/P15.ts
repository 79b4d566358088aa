// P15: a restore over SSH of a server on which all is in place, with 50 ms to it and back: the whole process on the
// operator's machine, from its start to its exit. Round trips are commands that sshd was asked to run; what connecting
// takes (TCP, key exchange, login) is told beside them.
import { execFileSync } from "node:child_process"
import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { interleave, median, publish } from "./support/measure.ts"
import { openSlowLink } from "./support/slow-link.ts"
import { makeServer, must } from "./support/whole.ts"

const roundTripMs = 50

const { servers, server: instance } = await makeServer()
await using _servers = servers

// sshd says which commands it runs, one line each.
await instance.run([
	"sh",
	"-c",
	"echo 'LogLevel VERBOSE' >/etc/ssh/sshd_config.d/00-verbose.conf && systemctl restart ssh",
])
await using link = await openSlowLink({ host: instance.address, port: 22 }, roundTripMs / 2)
const configuration = join(servers.workshop.laptop, "comfyume.yaml")
const text = readFileSync(configuration, "utf8")
writeFileSync(
	configuration,
	text.replace(`address: ${instance.address}`, `address: 127.0.0.1\n        port: ${link.port}`),
)
// The host gets this configuration too; then all is in place.
await must(servers.comfyume("restore"))
const commandsSoFar = async () => {
	const { stdout } = await instance.run(["journalctl", "--unit", "ssh", "--output", "cat"])
	return stdout.split("\n").filter((line) => line.startsWith("Starting session: command")).length
}

let commands = 0
let turns = 0
const run = async () => {
	const before = await commandsSoFar()
	link.turns()
	const said = await must(servers.comfyume("restore"))
	turns = Math.max(turns, link.turns())
	commands = Math.max(commands, (await commandsSoFar()) - before)
	const applied = Object.entries(said.outcomes).filter(([, outcome]) => outcome !== "satisfied")
	if (applied.length > 0) throw new Error(`where all is in place: ${JSON.stringify(applied)}`)
}
// The firewall turns away who logs in more than six times in half a minute; written to, it forgets.
const logins = "/proc/net/xt_recent/DEFAULT"
const before = () => instance.run(["sh", "-c", `[ ! -e ${logins} ] || echo / >${logins}`])
// What making the server has written is on the disk before anything is measured.
execFileSync("sync")
const runsMs = await interleave({ restore: { before, run } })
publish(
	"P15",
	`restore when all is in place, ${roundTripMs} ms to the host and back`,
	[
		{ what: "whole process", ratio: median(runsMs.restore) / 1000, goal: 2, most: true, unit: " s" },
		{ what: "commands over SSH", ratio: commands, goal: 6, stretch: 3, most: true, unit: "" },
	],
	{
		runsMs,
		turns,
		notes: [
			`The talk changed sides ${turns} times in all, connecting included.`,
			"The host is a machine of its own under systemd on the same two cores; a proxy holds every byte back.",
		],
	},
)
