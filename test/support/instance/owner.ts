// Who made a world: a process, told apart from a later one with the same pid by the time it started.
import { readFile } from "node:fs/promises"
import { createServer } from "node:net"
import { poll } from "../poll.ts"

export type Owner = {
	pid: number
	/** In clock ticks since boot, as the kernel counts them. */
	startedAtTicks: string
	bootId: string
}

/** This process as an owner. */
export async function thisOwner(): Promise<Owner> {
	const startedAtTicks = await startTicks(process.pid)
	if (startedAtTicks === undefined) throw new Error("/proc doesn't know this process")
	return { pid: process.pid, startedAtTicks, bootId: await bootId() }
}

/** Whether that very process still runs. */
export async function ownerIsAlive(owner: Owner): Promise<boolean> {
	return owner.bootId === (await bootId()) && owner.startedAtTicks === (await startTicks(owner.pid))
}

/** Whether any process has this pid. */
export async function processIsAlive(pid: number): Promise<boolean> {
	return (await startTicks(pid)) !== undefined
}

async function startTicks(pid: number): Promise<string | undefined> {
	const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => undefined)
	// The second field is the program's name and may hold spaces and brackets; the start time is the 22nd.
	return stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19]
}

async function bootId(): Promise<string> {
	return (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim()
}

/** Does some work that only one process on the machine may do at a time. */
export async function oneAtATime<T>(name: string, work: () => Promise<T>): Promise<T> {
	await using _lock = await holdLock(name, 120_000)
	return await work()
}

/**
 * A lock that one process on the machine holds at a time. It is an abstract socket: the kernel frees it when its holder
 * dies, however that happens.
 */
export async function holdLock(name: string, deadlineMs: number): Promise<AsyncDisposable> {
	const lock = await poll(() => bind(`\0comfyume-test-${name}`), {
		what: `the lock ${name}, held by another process`,
		deadlineMs,
	})
	return {
		[Symbol.asyncDispose]: () => new Promise((closed) => lock.close(() => closed())),
	}
}

function bind(path: string) {
	return new Promise<ReturnType<typeof createServer> | undefined>((resolve, reject) => {
		const server = createServer()
		server.once("error", (error: NodeJS.ErrnoException) =>
			error.code === "EADDRINUSE" ? resolve(undefined) : reject(error),
		)
		server.listen(path, () => resolve(server))
	})
}
