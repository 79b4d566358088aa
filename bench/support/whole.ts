// A whole server of twenty users that has been made, backed up and can be lost: for P15 and P21.
import { execFileSync } from "node:child_process"
import type { Instance } from "../../test/support/instance/instance.ts"
import { openWholeServers, type Said, type WholeServers } from "../../test/support/whole-server.ts"
import type { Identity } from "../../test/support/workshop.ts"
import { root } from "./measure.ts"

/** @throws {Error} with what the run said */
export async function must(running: Promise<Said>): Promise<Said> {
	const said = await running
	if (said.exitCode !== 0) throw new Error(said.all)
	return said
}

/** Opens the world and makes the first server; its configuration knows its address by then. */
export async function makeServer(): Promise<{ servers: WholeServers; server: Instance; identity: Identity }> {
	execFileSync(process.execPath, ["scripts/release.ts"], { cwd: root })
	const servers = await openWholeServers({ users: 20, lean: false })
	const server = await servers.freshServer("first", { images: true })
	servers.pointAt(server)
	const fingerprint = await servers.workshop.consoleFingerprint(server)
	const fresh = ["--host-fingerprint", fingerprint, "--format-scratch", servers.scratchDevice]
	await must(servers.comfyume("restore", "--first", ...fresh))
	const identity = await servers.identityOf(server)
	servers.pointAt(server, identity)
	await must(servers.comfyume("restore", "--only", "machine"))
	await must(servers.comfyume("backup"))
	return { servers, server, identity }
}
