// What is counted about estimates, endpoints and outputs, as the scraper reads it.
import { expect, test } from "vitest"
import { recordOf } from "../../../src/queue-manager/job.ts"
import { createMetrics } from "../../../src/queue-manager/metrics.ts"

const job = (status: string, more: Record<string, string> = {}) =>
	recordOf("j1", new Map(Object.entries({ user: "secretive", status, created: "1000", ...more })))

test("an estimate's error is how far the first one was off, once per job", async () => {
	const metrics = createMetrics()
	metrics.expect(job("pending"), 10)
	metrics.expect(job("pending"), 99)
	metrics.change(job("pending"))
	for (let count = 0; count < 2; count++) metrics.change(job("running", { started: "18000" }))
	const page = await metrics.page(undefined, 0)
	metrics.close()
	expect(page).toMatch(/eta_error_seconds_sum 7$/m)
	expect(page).toMatch(/eta_error_seconds_count 1$/m)
	expect(page).not.toContain("secretive")
})

test("endpoints that are gone from the list are gone from the page", async () => {
	const metrics = createMetrics()
	const view = { because: null, hint: null, slots: 4, running: 2, isActive: true }
	const one = { ...view, name: "default", preflight: "passed" as const, isBlocked: false }
	const page = await metrics.page(undefined, 0, [one])
	expect(page).toMatch(/endpoint_ready\{endpoint="default"\} 1$/m)
	expect(page).toMatch(/endpoint_jobs\{endpoint="default"\} 2$/m)
	expect(await metrics.page(undefined, 0, [{ ...one, isBlocked: true }])).toMatch(
		/endpoint_ready\{[^}]+\} -1$/m,
	)
	expect(await metrics.page(undefined, 0)).not.toContain('endpoint="default"')
	metrics.close()
})

test("cold starts, delivery and quarantine are counted", async () => {
	const metrics = createMetrics()
	metrics.coldStart(42)
	metrics.deliveryLag(3)
	metrics.quarantined()
	const page = await metrics.page(undefined, 0)
	metrics.close()
	expect(page).toMatch(/cold_start_seconds_sum 42$/m)
	expect(page).toMatch(/delivery_lag_seconds_sum 3$/m)
	expect(page).toMatch(/quarantined_files_total 1$/m)
})
