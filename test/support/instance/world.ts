// A world of fresh instances: a network that nothing outside of this machine can see, and the machines on it.
import { randomInt } from "node:crypto"
import { mkdir, readdir, readFile, statfs, writeFile } from "node:fs/promises"
import { join } from "node:path"
import { run } from "../run.ts"
import {
	createVirtualMachine,
	type VirtualMachine,
	type VirtualMachineOptions,
} from "../virtual-machine/virtual-machine.ts"
import { cacheDirectory, ensureBase } from "./base.ts"
import { createInstance, type Instance, type InstanceOptions } from "./instance.ts"
import { type Owner, oneAtATime, ownerIsAlive, thisOwner } from "./owner.ts"
import { removeWorld } from "./remove.ts"

const records = "/run/comfyume-test"
const overlayfsMagic = 0x794c7630

/** Everything that a world's name decides, so that another process can clear away what a killed one left. */
export type WorldRecord = {
	number: number
	owner: Owner
	/** Directory of the world on this machine; each instance has one of its own below it. */
	directory: string
}

export type World = {
	/** This machine's address on the world's network: servers that tests start listen here. */
	address: string
	/** The world's network in CIDR notation; every instance has an address in it. */
	network: string
	/** Makes and starts an instance; it is booting when this returns. Several at once are fine. */
	createInstance(options: InstanceOptions): Promise<Instance>
	/** The same with a kernel of its own, where the instances' lacks something: slow, and not in every test run. */
	createVirtualMachine(options: VirtualMachineOptions): Promise<VirtualMachine>
	/** Removes the world and all instances in it, without a trace. */
	[Symbol.asyncDispose](): Promise<void>
}

/**
 * Makes a network for instances, after clearing away what dead test runs left. Needs root, and the packages that
 * `npm test` installs. Several worlds can stand side by side, in one process or in several.
 */
export async function createWorld(): Promise<World> {
	const base = await ensureBase()
	await sweepLeftovers()
	const record = await claimWorld()
	try {
		await mkdir(record.directory, { recursive: true })
		// An overlay can't be laid upon another one: where the disk is one (in a container), memory has to do.
		if ((await statfs(record.directory)).type === overlayfsMagic)
			await run("mount", ["-t", "tmpfs", "-o", "mode=0755", "comfyume-test", record.directory])
		await makeNetwork(record.number)
	} catch (error) {
		await forget(record)
		throw error
	}

	let created = 0
	const instances: { destroy(): Promise<void> }[] = []
	const nextPlace = () => {
		created += 1
		return { world: record, address: hostAddress(record.number, 10 + created), index: created }
	}
	return {
		address: hostAddress(record.number, 1),
		network: `198.18.${record.number}.0/24`,
		createInstance: async (options) => {
			const instance = await createInstance({ ...options, base, ...nextPlace() })
			instances.push(instance)
			return instance
		},
		createVirtualMachine: async (options) => {
			const machine = await createVirtualMachine({ ...options, ...nextPlace() })
			instances.push(machine)
			return machine
		},
		[Symbol.asyncDispose]: async () => {
			await Promise.all(instances.map((instance) => instance.destroy()))
			await forget(record)
		},
	}
}

/** Clears away the worlds whose process is gone. Returns how many there were. */
export async function sweepLeftovers(): Promise<number> {
	return oneAtATime("worlds", async () => {
		let removed = 0
		for (const record of await readRecords()) {
			if (await ownerIsAlive(record.owner)) continue
			await removeWorld(record, recordFile(record.number))
			removed += 1
		}
		return removed
	})
}

// 198.18.0.0/15 is set aside for test networks (RFC 2544): nobody's real network is hidden by it.
const hostAddress = (world: number, host: number) => `198.18.${world}.${host}`

const recordFile = (number: number) => join(records, `world-${number}.json`)

async function claimWorld(): Promise<WorldRecord> {
	return oneAtATime("worlds", async () => {
		await mkdir(records, { recursive: true })
		const taken = new Set((await readRecords()).map(({ number }) => number))
		const free = Array.from({ length: 256 }, (_, candidate) => candidate).filter((n) => !taken.has(n))
		// By chance, so that a number that has just become free isn't at once somebody else's.
		const number = free[randomInt(Math.max(free.length, 1))]
		if (number === undefined)
			throw new Error("256 test worlds stand already; something makes them and leaves them")
		const record = {
			number,
			owner: await thisOwner(),
			directory: join(cacheDirectory(), "worlds", String(number)),
		}
		await writeFile(recordFile(number), JSON.stringify(record), { flag: "wx" })
		return record
	})
}

function forget(record: WorldRecord): Promise<void> {
	return oneAtATime("worlds", () => removeWorld(record, recordFile(record.number)))
}

async function readRecords(): Promise<WorldRecord[]> {
	const names = await readdir(records).catch((): string[] => [])
	return Promise.all(
		names.map(async (name) => JSON.parse(await readFile(join(records, name), "utf8")) as WorldRecord),
	)
}

// The bridge has a network namespace of its own, so that the machine's firewall (Docker's FORWARD policy) doesn't
// stand between two instances.
async function makeNetwork(number: number): Promise<void> {
	const namespace = `cfy${number}`
	const outside = `cfy${number}`
	await run("ip", ["netns", "add", namespace])
	await run("ip", ["-batch", "-"], {
		stdin: [
			`link add name ${outside} type veth peer name uplink netns ${namespace}`,
			`addr add ${hostAddress(number, 1)}/24 dev ${outside}`,
			`link set ${outside} up`,
		].join("\n"),
	})
	await run("ip", ["-n", namespace, "-batch", "-"], {
		stdin: [
			"link add name bridge0 type bridge",
			"link set uplink master bridge0",
			"link set uplink up",
			"link set bridge0 up",
		].join("\n"),
	})
}
