// Row 13: events over WebSocket, whole and in order, also for who was away in between.
import { expect, test } from "vitest"
import { type EventClient, openEvents } from "../../support/queue-manager.ts"
import { claimJob, describeContract, jobKeys, submit } from "../../support/queue-manager-subject.ts"

const of = (id: string) => (event: { data?: { id?: string } }) => event.data?.id === id

describeContract("events", (subject) => {
	const ask: ReturnType<typeof subject>["ask"] = (...args) => subject().ask(...args)

	test.each(["/ws", "/api/ws"])(
		"%s answers every text with a pong",
		async (path) => {
			const client = await openEvents(subject().url, path)
			for (const text of ["ping", "", "ünï", '{"type":"x"}']) client.send(text)
			await client.next("an event after all pongs", () => true).catch(() => undefined)
			expect(client.received.slice(0, 4)).toEqual(["pong: ping", "pong: ", "pong: ünï", 'pong: {"type":"x"}'])
			await client.close()
		},
		20_000,
	)

	test("a job's life is told in order, with the whole job and without its workflow", async () => {
		const client = await openEvents(subject().url)
		const id = await submit(ask)
		await claimJob(ask, id)
		await ask("POST", `/workers/complete-job?job_id=${id}`, { status: "success" })
		await client.next("the end", (event) => of(id)(event) && event.data.status === "completed")
		const events = client.received.filter(of(id))
		expect(events.map(({ type, data }) => [type, data.status])).toEqual([
			["job_created", "pending"],
			["job_updated", "running"],
			["job_updated", "completed"],
		])
		for (const { data, timestamp } of events) {
			expect(Object.keys(data).sort()).toEqual(jobKeys)
			expect(Number.isNaN(Date.parse(timestamp))).toBe(false)
		}
		expect(JSON.stringify(events)).not.toContain("class_type")
		await client.close()
	})

	test("a cancelled job is told as deleted", async () => {
		const client = await openEvents(subject().url)
		const id = await submit(ask)
		await ask("DELETE", `/jobs/${id}`)
		const event = await client.next("the deletion", (one) => of(id)(one) && one.type === "job_deleted")
		expect(event.data.status).toBe("cancelled")
		await client.close()
	})

	test("who comes back with ?after= gets what was missed, once, and then what happens", async () => {
		const client = await openEvents(subject().url)
		const seen = await submit(ask)
		const { id: last } = await client.next("the first event", of(seen))
		await client.close()
		const missed = [await submit(ask), await submit(ask)]
		const back = await openEvents(subject().url, `/ws?after=${last}`)
		const live = await submit(ask)
		await back.next("the live event", of(live))
		expect(back.received.map(({ data }) => data.id)).toEqual([...missed, live])
		await back.close()
	})

	test("nothing is lost or told twice however events and the return cross", async () => {
		const first = await openEvents(subject().url)
		const start = await submit(ask)
		const { id: from } = await first.next("the start", of(start))
		await first.close()
		const ids: string[] = []
		const clients: EventClient[] = []
		const submitting = (async () => {
			for (let n = 0; n < 150; n++) ids.push(await submit(ask))
		})()
		for (let n = 0; n < 10; n++) clients.push(await openEvents(subject().url, `/ws?after=${from}`))
		await submitting
		for (const client of clients) {
			await client.next("the last event", of(ids.at(-1) ?? ""))
			expect(client.received.map(({ data }) => data.id)).toEqual(ids)
			await client.close()
		}
	})

	test("an event that is kept no more is owned up to", async () => {
		await submit(ask)
		const client = await openEvents(subject().url, "/ws?after=1-0")
		const event = await client.next("word of the gap", ({ type }) => type === "resync")
		expect(event.data.oldest).toMatch(/^\d+-\d+$/)
		await client.close()
	})

	test("an event id that is none is refused", async () => {
		await expect(openEvents(subject().url, "/ws?after=yesterday")).rejects.toThrow("refused")
	})
})
