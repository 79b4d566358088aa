// The demo with real machines: two fresh instances under systemd and sshd, the second restored over SSH. Root only.
import { spawn } from "node:child_process"
import { readdirSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { run } from "../../test/support/run.ts"
import { damageAll, inventoryOf, openWorkshop } from "../../test/support/workshop.ts"
import { act, say } from "./tell.ts"

const repository = fileURLToPath(new URL("../..", import.meta.url))

act(1, "A small world")
say("The release that is put on hosts is built: comfyume with its own Node, checked by its digest.")
await run(process.execPath, ["scripts/release.ts"], { workingDirectory: repository, timeoutMs: 300_000 })
await using workshop = await openWorkshop()
const first = await workshop.freshInstance("first")
const identity = await workshop.makeServer(first)
await workshop.pointAt(first, identity)
say(
	`A server at ${first.address} under systemd and sshd, with the Tailscale address ${identity.tailscaleAddress}; a share bound into it, an S3 server in R2's place, a private git remote. Stand-ins: the bind mount for NFS, the S3 server for R2, the tailscale program for Tailscale's.`,
)

act(2, "The server is backed up, from the operator's machine over SSH")
await comfyume("backup")

act(3, "The server is destroyed, and a snapshot on the share is damaged")
const lost = inventoryOf(first)
await first.destroy()
const home = join(workshop.share, "cache/backups", workshop.environmentName, "home")
const [archive = ""] = readdirSync(home).filter((name) => name.endsWith(".tar.zst"))
await damageAll([join(home, archive)])
const second = await workshop.freshInstance("second")
await workshop.pointAt(second, identity)
say(
	`A fresh machine stands at ${second.address}. One bit of home/${archive} on the share is flipped. The fresh machine's host key is read from its console and given for this run; the old server's key stays pinned.`,
)

act(4, "The server is restored onto the fresh machine, over SSH")
const fingerprint = await workshop.consoleFingerprint(second)
await comfyume("restore", "--identity-is-free", "--host-fingerprint", fingerprint)

act(5, "Is it what was lost?")
const same = inventoryOf(second) === lost
const wire = [...(await second.hostKeyFingerprintsOnWire()).values()]
const known = wire.length > 0 && wire.every((key) => identity.hostKeys.includes(key))
const address = (await second.run(["tailscale", "ip", "-4"])).stdout.trim()
say(`Every file, owner and mode, compared by find and sha256sum: ${same ? "the same" : "NOT the same"}.`)
say(`The SSH host keys on the wire: ${known ? "the lost server's" : "NOT the lost server's"}.`)
say(`The Tailscale address: ${address}, as before: ${address === identity.tailscaleAddress ? "yes" : "NO"}.`)
process.exitCode = same && known && address === identity.tailscaleAddress ? 0 : 1

/** comfyume as the operator types it, on this terminal. */
async function comfyume(command: string, ...words: string[]): Promise<void> {
	const argv = [command, "--env", workshop.environmentName, ...words]
	say(`$ comfyume ${argv.join(" ")}\n`)
	const child = spawn(process.execPath, [join(repository, "bin/comfyume.js"), ...argv], {
		cwd: workshop.laptop,
		stdio: "inherit",
	})
	const exitCode = await new Promise((resolve) => child.once("close", resolve))
	if (exitCode !== 0) throw new Error(`comfyume ${command} ended with ${exitCode}`)
}
