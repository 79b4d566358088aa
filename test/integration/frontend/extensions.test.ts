// The extensions in a real Chromium and ComfyUI's real frontend, behind the real front door and before a real queue: what
// a user does and sees. The tests play the GPU worker.
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import type { Page } from "playwright-core"
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest"
import { openWorld, type World } from "../../support/comfyui-page/world.ts"
import { describeWith } from "../../support/parts.ts"
import { poll } from "../../support/poll.ts"

// biome-ignore lint/suspicious/noExplicitAny: what the frontend keeps in the page is not ours to describe
type Any = any
declare const window: Any
declare const document: Any

// A page of ComfyUI takes its time where others use the machine too.
vi.setConfig({ testTimeout: 180_000, hookTimeout: 120_000 })
const deadlineMs = 30_000
const picture = Buffer.from(
	"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==",
	"base64",
)

describeWith("chromium", "the frontend's extensions", () => {
	let world: World

	beforeAll(async () => {
		world = await openWorld(3, "user003")
	})
	afterAll(async () => {
		await world?.[Symbol.asyncDispose]()
	})
	afterEach(async () => {
		for (const context of world.contexts()) await context.close()
		for (const { id } of [...(await jobsOf("pending")), ...(await jobsOf("running"))])
			await world.admin("DELETE", `/jobs/${id}`)
	})

	const jobsOf = async (status: string, user?: string): Promise<Any[]> =>
		(await world.admin("GET", `/jobs?status=${status}${user === undefined ? "" : `&user_id=${user}`}`)).body

	/** A user's page with the first workflow on it. */
	async function begin(user: string, options = {}, query = "?workflow=first%20steps"): Promise<Page> {
		const page = await world.open(await world.signIn(user, options), user, query)
		await waitFor(page, "the workflow", () => window.app.graph.nodes.length === 2)
		return page
	}

	async function waitFor(page: Page, what: string, condition: (given: Any) => unknown, given?: Any) {
		await page.waitForFunction(condition, given, { timeout: deadlineMs }).catch((error: Error) => {
			throw new Error(`${what}: ${error.message}`)
		})
	}

	/** Presses the real button, with the real field for the batch's size. */
	async function run(page: Page, batch = 1): Promise<void> {
		await page.evaluate((count) => {
			window.app.extensionManager.queueSettings.batchCount = count
		}, batch)
		await page.getByTestId("queue-button").getByRole("button", { name: "Run", exact: true }).click()
	}

	const strip = (page: Page) => page.locator(".comfyume-strip")
	async function says(page: Page, text: string | RegExp): Promise<void> {
		const shown = async () => {
			const said = (await strip(page).isVisible()) ? await strip(page).innerText() : ""
			return typeof text === "string" ? said.includes(text) : text.test(said)
		}
		try {
			await poll(shown, { what: "the strip", deadlineMs, intervalMs: 50 })
		} catch {
			throw new Error(`the strip should say ${text}, and says: ${await strip(page).innerText()}`)
		}
	}

	async function claim(worker = "w1") {
		const next = async () => {
			const { body, headers } = await world.worker(
				"GET",
				`/workers/next-job?worker_id=${worker}&heartbeat=true`,
			)
			return body.job === null ? undefined : { job: body.job, lease: headers.get("x-comfyume-lease") ?? "" }
		}
		const { job, lease } = await poll(next, { what: "a job to claim", deadlineMs, intervalMs: 50 })
		const headers = { "x-comfyume-lease": lease }
		return {
			id: job.id as string,
			job,
			tell: (progress: object) =>
				world.worker("POST", "/workers/heartbeat", { worker_id: worker, job_id: job.id, progress }, headers),
			complete: (outputs: object = {}) =>
				world.worker(
					"POST",
					`/workers/complete-job?job_id=${job.id}`,
					{ status: "success", outputs },
					headers,
				),
			fail: (error: string) => world.worker("POST", `/workers/fail-job?job_id=${job.id}`, { error }, headers),
		}
	}

	const pictureOf = (user: string, name: string) => {
		writeFileSync(join(world.outputs(user), name), picture)
		return { "2": { images: [{ filename: name, subfolder: user, type: "output" }] } }
	}

	test("a batch of four gives four jobs with four seeds, and ComfyUI's own queue none", async () => {
		const page = await begin("user001")
		await run(page, 4)
		await says(page, "0 of 4 done")
		const claimed = []
		for (const worker of ["w1", "w2", "w3", "w4"]) claimed.push(await claim(worker))
		const seedOf = ({ job }: Any) => job.workflow["1"].inputs.seed
		expect(claimed.map(seedOf)).toEqual([100, 101, 102, 103])
		expect(new Set(claimed.map(({ id }) => id)).size).toBe(4)
		for (const [index, { id, job }] of claimed.entries()) {
			expect(job.user_id).toBe("user001")
			expect(job.workflow["2"].class_type).toBe("SaveImage")
			expect(job.metadata).toMatchObject({ batch_index: index, batch_total: 4 })
			// The graph of that moment goes along, so that the picture can be opened as a workflow.
			expect(job.metadata.extra_pnginfo.workflow.nodes[0].widgets_values[0]).toBe(100 + index)
			expect((await world.admin("GET", `/jobs/${id}`)).body.priority).toBe(1)
		}
		expect((await jobsOf("pending", "user001")).length).toBe(0)
		expect(await world.askedNatively("user001")).toBe(0)
		const widget = await page.evaluate(() => window.app.graph.getNodeById(1).widgets[0].value)
		expect(widget).toBe(104)
	})

	test("the strip tells each phase, and the picture comes into its node and the history", async () => {
		const page = await begin("user001")
		await run(page)
		await says(page, "Queued, next in line")
		const job = await claim()
		await says(page, "Starting")
		await job.tell({ phase: "submitting", message: "cold start: default wakes a GPU" })
		await says(page, "A GPU is starting")
		await job.tell({ phase: "polling", node: "1", value: 7, max: 20 })
		await says(page, /Running\s+MadeUpPicture, 35 %/)
		await waitFor(page, "ComfyUI's own progress", () => document.body.innerText.includes("35%"))
		await job.tell({ phase: "complete" })
		await says(page, "Saving")
		await job.complete(pictureOf("user001", "workshop_00001_.png"))
		await says(page, "Done")
		await waitFor(page, "the picture in its node", () => {
			const image = window.app.graph.getNodeById(2).imgs?.[0]
			return image?.complete === true && image.naturalWidth === 1
		})
		const history = await page.evaluate(() => window.app.api.getHistory())
		const entry = history.History.find((one: Any) => one.prompt[1] === job.id)
		expect(entry.outputs["2"].images[0]).toMatchObject({ filename: "workshop_00001_.png", subfolder: "" })
		expect(entry.prompt[3].extra_pnginfo.workflow.nodes.length).toBe(2)
	})

	test("several jobs are summed up, and one that failed says why and what to do", async () => {
		const page = await begin("user001")
		await run(page, 4)
		const [first, second] = [await claim("w1"), await claim("w2")]
		await first.complete(pictureOf("user001", "workshop_00002_.png"))
		await says(page, "1 of 4 done, 1 running, 2 waiting, next in line")
		await second.fail("KSampler: CUDA out of memory")
		await says(page, "1 of 4 done, 2 waiting, next in line, 1 failed")
		await says(page, "CUDA out of memory. Try a smaller size")
		await waitFor(page, "ComfyUI's own dialogue", () =>
			[...document.querySelectorAll('[role="dialog"]')].some((one: Any) =>
				one.innerText.includes("CUDA out of memory"),
			),
		)
	})

	test("ComfyUI's stop button cancels the job that runs, its queue panel one that waits", async () => {
		const page = await begin("user001")
		await run(page, 2)
		const job = await claim()
		await says(page, "1 running")
		await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Interrupt"))
		await says(page, "1 cancelled")
		expect((await job.tell({ phase: "polling" })).body.state).toBe("cancelled")
		const [waiting] = await jobsOf("pending", "user001")
		const queue = await page.evaluate(() => window.app.api.getQueue())
		expect(queue.Pending.map((one: Any) => one.prompt[1])).toEqual([waiting.id])
		await page.evaluate((id) => window.app.api.deleteItem("queue", id), waiting.id)
		await says(page, "2 cancelled")
		expect((await jobsOf("cancelled", "user001")).map(({ id }) => id)).toContain(waiting.id)
	})

	test("a workflow that is wrong is shown in ComfyUI's own way and sent nowhere", async () => {
		const page = await begin("user001")
		await page.evaluate(() => {
			window.app.graph.getNodeById(1).widgets.find((one: Any) => one.name === "width").value = -1
		})
		await run(page, 3)
		await waitFor(page, "the dialogue", () => document.body.innerText.includes("Value smaller than min"))
		await waitFor(page, "the red node", () => window.app.graph.getNodeById(1).has_errors === true)
		expect(await jobsOf("pending")).toEqual([])
		expect(await world.askedNatively("user001")).toBe(0)
		// The batch ended, and no seed was used up by what never ran.
		expect(await page.evaluate(() => window.app.graph.getNodeById(1).widgets[0].value)).toBe(100)
	})

	test("where this ComfyUI can't check workflows, the GPU's will: they are sent all the same", async () => {
		const page = await begin("user003")
		await run(page)
		expect((await claim()).job.workflow["2"].class_type).toBe("SaveImage")
		expect(await world.askedNatively("user003")).toBe(0)
	})

	test("a full queue is said in words, and ends the batch", async () => {
		const page = await begin("user001")
		for (let number = 0; number < world.depth - 1; number++)
			await world.admin("POST", "/jobs", { user_id: "user003", workflow: { a: number } })
		await run(page, 3)
		await says(page, "The queue is full")
		await waitFor(page, "the dialogue", () =>
			document.body.innerText.includes("Wait until some jobs are done"),
		)
		expect((await jobsOf("pending", "user001")).length).toBe(1)
	})

	test("a queue manager that is killed costs nothing: one job, sent again, and its events go on", async () => {
		const page = await begin("user001")
		await world.killManager()
		await run(page)
		await says(page, "The queue doesn't answer")
		await world.startManager()
		await says(page, "Queued, next in line")
		expect((await jobsOf("pending", "user001")).length).toBe(1)
		const job = await claim()
		await says(page, "Starting")
		await world.killManager()
		await says(page, "The connection to the queue is lost")
		await world.startManager()
		await job.complete(pictureOf("user001", "workshop_00003_.png"))
		await says(page, "Done")
		await waitFor(page, "the picture", () => window.app.graph.getNodeById(2).imgs?.length === 1)
	})

	test("a reload goes on where it was, with what ended meanwhile", async () => {
		const page = await begin("user001")
		await run(page, 2)
		const [first, second] = [await claim("w1"), await claim("w2")]
		await says(page, "2 running")
		await page.goto("about:blank")
		await first.complete(pictureOf("user001", "workshop_00004_.png"))
		await page.goBack()
		await says(page, "1 of 2 done, 1 running")
		await second.complete(pictureOf("user001", "workshop_00005_.png"))
		await says(page, "2 of 2 done")
	})

	test("what happens to others' jobs reaches nobody else's page", async () => {
		const page = await world.open(await world.signIn("user003"), "user003")
		const frames: string[] = []
		const asked: string[] = []
		page.on("websocket", (socket) => {
			asked.push(socket.url())
			socket.on("framereceived", ({ payload }) => frames.push(String(payload)))
		})
		await page.reload()
		const other = await begin("user001")
		await run(other)
		const job = await claim()
		await job.tell({ phase: "polling", node: "1", value: 1, max: 2 })
		await job.complete(pictureOf("user001", "workshop_00006_.png"))
		await says(other, "Done")
		// What comes after it has come: so what was before has been told.
		await world.admin("PUT", "/banner", { text: "Back at two", level: "info" })
		await says(page, "Back at two")
		await says(other, "Back at two")
		expect(frames.some((text) => text.includes("Back at two"))).toBe(true)
		// A browser that an instructor signed in with too would be told of everybody's.
		const ofQueue = asked.filter((url) => new URL(url).pathname === "/ws")
		expect(ofQueue.every((url) => new URL(url).searchParams.get("user_id") === "user003")).toBe(true)
		expect(frames.filter((text) => text.includes(job.id))).toEqual([])
		expect(await strip(page).innerText()).toBe("Back at two")
		await world.admin("PUT", "/banner", { text: "" })
	})

	test("errors of the console are reported once, without secrets, for the admin alone", async () => {
		const page = await begin("user003")
		await page.evaluate(() => {
			for (let time = 0; time < 3; time++)
				console.error("broken at https://ann:made-up@example.test/view?token=made-up-token-1")
			setTimeout(() => {
				throw new Error("thrown by made-up code")
			})
			void Promise.reject(new Error("rejected by made-up code"))
		})
		const reports = async () => {
			const { body } = await world.admin("GET", "/client-log")
			const ours = body.filter((one: Any) => one.client === "user:user003")
			const found = ["broken at", "thrown by", "rejected by"].map((text) =>
				ours.filter((one: Any) => one.message.includes(text)),
			)
			return found.every((those) => those.length > 0) ? found : undefined
		}
		const found = await poll(reports, { what: "the reports", deadlineMs, intervalMs: 100 })
		expect(found.map((those: Any[]) => those.length)).toEqual([1, 1, 1])
		const [[broken], [thrown]] = found as Any
		expect(broken).toMatchObject({ message: "broken at https://example.test/view", level: "error" })
		expect(broken.context).toMatchObject({
			count: 3,
			kind: "console",
			page: "/user003/",
			frontend: "1.37.11",
		})
		expect(thrown.context.kind).toBe("error")
		expect(JSON.stringify(found)).not.toContain("made-up-token-1")
		expect((await world.userClient("user003")("GET", "/client-log")).status).toBe(403)
	})

	test("a first page begins with the workshop's workflow; after that a user's work is left alone", async () => {
		const context = await world.signIn("user002")
		const page = await world.open(context, "user002")
		await waitFor(page, "the first workflow", () => window.app.graph.nodes.length === 2)
		const active = () => window.app.extensionManager.workflow.activeWorkflow
		expect(await page.evaluate(active)).toMatchObject({ path: "workflows/first steps.json" })
		await page.evaluate(() => {
			window.app.graph.getNodeById(1).widgets[0].value = 4711
			window.app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()
		})
		await waitFor(page, "ComfyUI's own note of it", () => localStorage["workflow"].includes("4711"))
		// Neither a reload goes over it, nor a link to the same workflow, here or in another tab.
		const link = "?workflow=first%20steps"
		const home = page.url().split("?")[0]
		const showsWork = async (tab: Page) => {
			await waitFor(tab, "the user's work", () => window.app?.graph?.nodes.length === 2)
			await waitFor(tab, "the link's end", () => window.location.search === "")
			expect(await tab.evaluate(() => window.app.graph.getNodeById(1).widgets[0].value)).toBe(4711)
		}
		await page.reload()
		await showsWork(page)
		await page.goto(`${home}${link}`)
		await showsWork(page)
		await showsWork(await world.open(context, "user002", link))
		// In another browser it isn't a first time.
		const elsewhere = await world.open(await world.signIn("user002"), "user002")
		expect(await elsewhere.evaluate(() => window.app.graph.nodes.length)).toBe(0)
	})

	test("a link to a workflow that isn't there says so", async () => {
		const page = await world.open(await world.signIn("user001"), "user001", "?workflow=nowhere")
		await waitFor(page, "the toast", () => document.body.innerText.includes('There is no workflow "nowhere"'))
	})

	test("from 360 pixels to 4K the strip lies over no control, and is still where motion is unwanted", async () => {
		await world.admin("PUT", "/banner", {
			text: "Videos below five seconds today, please.",
			level: "warning",
		})
		const page = await begin("user003", { reducedMotion: "reduce" })
		await run(page, 2)
		await claim()
		await says(page, "1 running")
		await says(page, "Videos below five")
		for (const [width, height] of [
			[360, 740],
			[800, 600],
			[1101, 700],
			[1280, 800],
			[3840, 2160],
		] as const) {
			await page.setViewportSize({ width, height })
			const clear = () => page.evaluate(coveredControls).then((covered) => covered.length === 0)
			await poll(clear, { what: "the controls are free", deadlineMs: 10_000 }).catch(() => undefined)
			expect(await page.evaluate(coveredControls), `${width} × ${height}`).toEqual([])
		}
		const animation = await page.evaluate(
			() => window.getComputedStyle(document.querySelector(".comfyume-mark")).animationName,
		)
		expect(animation).toBe("none")
		await world.admin("PUT", "/banner", { text: "" })
	})
})

/** In the page: what lies under the strip, and whether the strip lies outside. */
function coveredControls(): string[] {
	const strip = document.querySelector(".comfyume-strip")
	const box = strip.getBoundingClientRect()
	const isInside = box.left >= 0 && box.right <= window.innerWidth && box.bottom <= window.innerHeight
	const under = [...document.querySelectorAll("button")].filter((one: Any) => {
		if (strip.contains(one) || one.getClientRects().length === 0) return false
		const { left, right, top, bottom } = one.getBoundingClientRect()
		return left < box.right && right > box.left && top < box.bottom && bottom > box.top
	})
	return [...(isInside ? [] : ["outside"]), ...under.map((one: Any) => one.ariaLabel ?? one.className)]
}
