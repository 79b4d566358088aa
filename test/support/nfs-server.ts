// A real NFS server in user space, nfs-ganesha: version 4 alone, as the platform's share is offered.
import { spawn } from "node:child_process"
import { mkdir, mkdtemp, open, readFile, rm, writeFile } from "node:fs/promises"
import { connect } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { poll } from "./poll.ts"

export type NfsServer = {
	/** `host:/path`, as `mount` takes it. */
	source: string
	/** Starts it, and resolves when its port is open. */
	start(): Promise<void>
	/** Ends it: its port is closed afterwards. */
	stop(): Promise<void>
	[Symbol.asyncDispose](): Promise<void>
}

/**
 * Serves a directory on the NFS port of an address. Not started yet.
 * @param directory on a file system with handles (ext4, not an overlay)
 */
export async function makeNfsServer(address: string, directory: string): Promise<NfsServer> {
	const own = await mkdtemp(join(tmpdir(), "comfyume-nfs-"))
	const state = join(own, "state")
	const path = "/volume-1"
	await writeFile(
		join(own, "ganesha.conf"),
		`NFS_CORE_PARAM { Bind_addr = ${address}; Protocols = 4; NFS_Port = 2049; Enable_NLM = false; Enable_RQUOTA = false; }
NFSV4 { RecoveryBackend = fs; RecoveryRoot = ${state}; Lease_Lifetime = 60; Minor_Versions = 1,2; }
EXPORT {
	Export_Id = 1;
	Path = ${directory};
	Pseudo = ${path};
	Access_Type = RW;
	Squash = No_Root_Squash;
	SecType = sys;
	FSAL { Name = VFS; }
}
LOG { Default_Log_Level = EVENT; }
`,
	)
	const log = join(own, "ganesha.log")
	let running: { end(): Promise<void> } | undefined
	const stop = async () => {
		await running?.end()
		running = undefined
	}
	return {
		source: `${address}:${path}`,
		start: async () => {
			// Nobody reclaims what he had: who was there has rebooted since, or would be waited for.
			await rm(state, { recursive: true, force: true })
			await mkdir(state)
			const file = await open(log, "a")
			const child = spawn(
				"ganesha.nfsd",
				["-F", "-f", join(own, "ganesha.conf"), "-L", "STDOUT", "-p", join(own, "ganesha.pid")],
				{ stdio: ["ignore", file.fd, file.fd] },
			)
			await file.close()
			let ended = false
			const end = new Promise<void>((resolve) => {
				const done = () => {
					ended = true
					resolve()
				}
				child.once("exit", done)
				child.once("error", done)
			})
			running = {
				end: async () => {
					child.kill("SIGKILL")
					await end
				},
			}
			await poll(
				async () => {
					if (ended) throw new Error(`ganesha.nfsd ended:\n${(await readFile(log, "utf8")).slice(-2000)}`)
					return answers(address)
				},
				{ what: "the NFS server's port", deadlineMs: 30_000 },
			)
		},
		stop,
		[Symbol.asyncDispose]: async () => {
			await stop()
			await rm(own, { recursive: true, force: true })
		},
	}
}

function answers(address: string): Promise<boolean> {
	return new Promise((resolve) => {
		const socket = connect({ host: address, port: 2049 })
		socket.once("connect", () => {
			socket.destroy()
			resolve(true)
		})
		socket.once("error", () => resolve(false))
	})
}
