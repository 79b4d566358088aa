// Four kinds of tests, from fast and pure to slow and real. CONTRIBUTING.md says which kind a new test belongs to.
import { defineConfig } from "vitest/config"

export default defineConfig({
	test: {
		// Real servers are started per file; two cores bear two files at once.
		maxWorkers: 2,
		reporters: ["default"],
		projects: [
			project("unit", 20_000),
			project("integration", 120_000),
			project("contract", 120_000),
			project("e2e", 600_000, { globalSetup: "test/support/build-release.ts" }),
			// Too slow for every run: scripts/test-nightly.ts asks for it.
			...(process.env["COMFYUME_TEST_NIGHTLY"] === undefined
				? []
				: [project("nightly", 600_000, { globalSetup: "test/support/build-release.ts" })]),
		],
	},
})

function project(name: string, timeoutMs: number, more: { globalSetup?: string } = {}) {
	return {
		extends: true as const,
		test: {
			name,
			include: [`test/${name}/**/*.test.ts`],
			// A million inputs of a property take as long as they take: see test/support/properties.ts.
			testTimeout: process.env["COMFYUME_TEST_INPUTS"] === undefined ? timeoutMs : 0,
			hookTimeout: timeoutMs,
			...more,
		},
	}
}
