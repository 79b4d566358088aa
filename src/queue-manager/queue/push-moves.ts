// The queue's moves for jobs that are handed to an endpoint, and the records by which each file is delivered once.
import { createHash, randomUUID } from "node:crypto"
import type { DeliveryId, DeliveryRecord, DeliveryRecords } from "../outputs/records.ts"
import type { Connection, Reply } from "./connection.ts"
import { scripts } from "./scripts.ts"

/** A job that somebody else had begun; its workflow is read apart. */
export type Adopted = {
	id: string
	user: string
	attempt: number
	createdMs: number
	endpoint: string
	token: string
}
/** A job that is done, and whose late files are waited for. */
export type Late = { id: string; user: string; attempt: number; createdMs: number }

export type Held =
	| { state: "held"; user: string; attempt: number }
	| { state: "ended"; status: string }
	| { state: "waiting" | "lost" | "missing" }

// As long as the job's record.
const deliveriesKeptMs = 7 * 86_400_000
// A job whose queue manager dies again and again may be what kills it.
const mostAdoptions = 3

/** @param upload puts bytes into a key that expires unless a script makes it last */
export function pushMoves(
	{ main, bulk, base }: { main: Connection; bulk: Connection; base: string },
	upload: (key: string, bytes: Buffer) => Promise<void>,
) {
	const fileOf = ({ job, attempt, file }: DeliveryId) => `${job}:${attempt}:${file}`
	const recordOf = (reply: Reply): DeliveryRecord | undefined => {
		const [state, user, node, filename] = reply as (string | null)[]
		if (state === null || state === undefined) return undefined
		return {
			state: state as DeliveryRecord["state"],
			user: user ?? "",
			node: node ?? "",
			filename: filename ?? "",
		}
	}

	const deliveries: DeliveryRecords = {
		async find(id) {
			const fields = ["state", "user", "node", "filename"]
			return recordOf(await main.send(["HMGET", `${base}:delivery:${fileOf(id)}`, ...fields]))
		},
		async reserve(id, { user, node, filename }, instead = "") {
			const args = [fileOf(id), user, node, filename, instead, deliveriesKeptMs]
			const reply = await main.run(scripts.reserveName, base, args)
			const record = recordOf(reply)
			if (record === undefined) throw new Error("Redis gave no record of a name")
			return (record.state as string) === "taken" ? "taken" : record
		},
		async complete(delivered) {
			const { job, sizeBytes, digest } = delivered
			const args = [fileOf(delivered), job, sizeBytes, digest, deliveriesKeptMs]
			const [state] = (await main.run(scripts.completeDelivery, base, args)) as string[]
			if (state === "unreserved") throw new Error("a file was delivered under a name it didn't reserve")
			return state as "first" | "already"
		},
	}

	return {
		deliveries,

		/** Takes over a job that an endpoint has and that nobody observes any more. */
		async adopt(
			worker: string,
			leaseMs: number,
			timeoutMs: number,
			own: readonly string[],
		): Promise<Adopted | undefined> {
			const token = randomUUID()
			const args = [worker, token, leaseMs, timeoutMs, mostAdoptions, ...own]
			const reply = await main.run(scripts.adopt, base, args)
			if (reply === null) return undefined
			const [id, user, attempt, created, endpoint] = reply as [string, string, number, string, string]
			return { id, user, attempt, createdMs: Number(created), endpoint, token }
		},

		/** Lets go of a job that an endpoint goes on with. */
		async handOver(id: string, token: string): Promise<void> {
			await main.run(scripts.handOver, base, [id, token])
		},

		/**
		 * Whether a worker has a job, before its files are touched.
		 * @param deliveringMs for which the job is not taken from it, whatever it does: its result is on its way
		 */
		async holder(id: string, token: string, principal: string, deliveringMs = 0): Promise<Held> {
			const reply = await main.run(scripts.holder, base, [id, token, principal, deliveringMs])
			const [state, second, attempt] = reply as [string, string, number]
			if (state === "held") return { state, user: second, attempt }
			if (state === "ended") return { state, status: second }
			return { state: state as "waiting" | "lost" | "missing" }
		},

		/** A job's workflow as it was submitted; undefined when it isn't kept any more. */
		async workflowOf(id: string): Promise<Buffer | undefined> {
			return (await bulk.bytes(["HGET", `${base}:payload:${id}`, "workflow"])) ?? undefined
		},

		/** How many jobs an endpoint has, over all queue managers. */
		async onEndpoint(endpoint: string): Promise<number> {
			return Number(await main.send(["SCARD", `${base}:endpoint:${endpoint}`]))
		},

		/** A job whose late files nobody waits for. */
		async takeLate(leaseMs: number): Promise<Late | undefined> {
			const reply = await main.run(scripts.takeLate, base, [leaseMs])
			if (reply === null) return undefined
			const [id, user, attempt, created] = reply as [string, string, number, string]
			return { id, user, attempt, createdMs: Number(created) }
		},

		/** @param leaseMs null: nothing more is waited for */
		async keepLate(id: string, leaseMs: number | null): Promise<void> {
			await main.run(scripts.keepLate, base, [id, leaseMs ?? ""])
		},

		/**
		 * Replaces a job's result by one that holds more.
		 * @param change gives the new text, or undefined when there is nothing to change; may be asked again
		 */
		async amend(
			id: string,
			change: (result: string) => string | undefined,
		): Promise<"done" | "unchanged" | "gone"> {
			for (;;) {
				const present = (await bulk.send(["GET", `${base}:result:${id}`], 30_000)) as string | null
				if (present === null) return "gone"
				const changed = change(present)
				if (changed === undefined) return "unchanged"
				const name = randomUUID()
				await upload(`${base}:upload:${name}`, Buffer.from(changed))
				const digest = createHash("sha1").update(present).digest("hex")
				const [state] = (await main.run(scripts.amend, base, [id, digest, name])) as string[]
				if (state === "done") return "done"
			}
		},
	}
}
