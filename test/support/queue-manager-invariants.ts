// What must hold of a queue after whatever happened to it, read from its events and records: nothing here asks the code
// that made them what it meant.
import { expect } from "vitest"
import type { Queue } from "../../src/queue-manager/queue/queue.ts"

const terminal = new Set(["completed", "failed", "cancelled"])

/**
 * Checks a queue in which everything has come to its end.
 * @param accepted the ids that clients were given; there may be more, whose answer got lost
 */
export async function expectInvariants(queue: Queue, accepted: ReadonlySet<string>): Promise<void> {
	const lives = await livesOf(queue)
	for (const id of accepted) expect(lives.has(id), `${id} was accepted and is gone`).toBe(true)
	let withdrawn = 0
	for (const [id, states] of lives) {
		expect(states[0], `${id} begins`).toBe("pending")
		const ends = states.filter((state) => terminal.has(state))
		expect(ends, `${id} ends once: ${states.join(" ")}`).toHaveLength(1)
		expect(terminal.has(states.at(-1) ?? ""), `${id} changes after its end: ${states.join(" ")}`).toBe(true)
		for (const [index, state] of states.entries()) {
			// Two workers never have it at once.
			if (state === "running") expect(states[index - 1], `${id}: ${states.join(" ")}`).toBe("pending")
		}
		const found = await queue.find(id)
		// Its submit failed, and nobody had it: no trace stays.
		if (found === undefined && !accepted.has(id) && states.join(" ") === "pending cancelled") {
			withdrawn += 1
			continue
		}
		expect(found?.record.status, `the record of ${id}`).toBe(states.at(-1))
	}
	const status = await queue.status(0)
	expect([status.waiting, status.running.length, status.kinds.size]).toEqual([0, 0, 0])
	const total = (name: string) => status.totals.get(name) ?? 0
	const kept = lives.size - withdrawn
	expect(total("created")).toBe(kept)
	expect(total("completed") + total("failed") + total("cancelled")).toBe(kept)
	const listed = await queue.list("", "", 1000)
	expect(listed).toHaveLength(Math.min(1000, kept))
}

/** The states of every job in the order of its events; changes that keep the state aside. */
async function livesOf(queue: Queue): Promise<Map<string, string[]>> {
	const lives = new Map<string, string[]>()
	for (let after = "0-0"; ; ) {
		const page = await queue.eventsAfter(after, 1000)
		for (const { fields } of page) {
			// Progress and files aside.
			if (fields.get("type")?.startsWith("job_") !== true) continue
			const states = lives.get(fields.get("id") ?? "") ?? []
			const state = fields.get("status") ?? ""
			if (states.at(-1) !== state) states.push(state)
			else if (state !== "pending") states.push(`${state} again`)
			lives.set(fields.get("id") ?? "", states)
		}
		const last = page.at(-1)
		if (last === undefined) return lives
		after = last.id
	}
}

/** Works off all that is left: dead workers' jobs are taken back, and every job is completed. */
export async function drain(queue: Queue): Promise<void> {
	const deadline = Date.now() + 20_000
	for (let turn = 0; ; turn++) {
		if (Date.now() > deadline) throw new Error("the queue can't be worked off")
		await queue.reap(3_600_000)
		const claimed = await queue.claim(`drain-${turn}`, "", 60_000, true)
		if (claimed !== undefined) {
			const end = { id: claimed.id, token: claimed.token, principal: "", error: "", retryable: false }
			await queue.settle({ ...end, status: "completed" })
			continue
		}
		const { waiting, running } = await queue.status(0)
		if (waiting + running.length === 0) return
	}
}
