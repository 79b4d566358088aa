// The images' templates, read as text: what must hold of them wherever they are built.
import { readFile } from "node:fs/promises"
import { describe, expect, test } from "vitest"

describe.each(["worker-agent", "queue-manager"])("the image of the %s", async (name) => {
	const text = await readFile(new URL(`../../../templates/${name}/Dockerfile`, import.meta.url), "utf8")
	const lines = text
		.replaceAll("\\\n", " ")
		.split("\n")
		.filter((line) => line !== "" && !line.startsWith("#"))
	const all = (instruction: string) => lines.filter((line) => line.trimStart().startsWith(`${instruction} `))

	test("takes its Node base as an argument, and runs nothing while it is built", () => {
		expect(lines.slice(0, 2)).toEqual(["ARG NODE_IMAGE", "FROM $".concat("{NODE_IMAGE}")])
		expect([...all("RUN"), ...all("ADD")]).toEqual([])
	})

	test("is run by somebody who is not root", () => {
		expect(all("USER")).toEqual(["USER 1000:1000"])
		expect(lines.findIndex((line) => line.startsWith("USER"))).toBeGreaterThan(
			lines.findLastIndex((line) => line.startsWith("COPY")),
		)
	})

	test("checks its health with Node alone, on 127.0.0.1, by what the answer says", () => {
		const [check = ""] = all("HEALTHCHECK")
		expect(check).toMatch(/CMD \["node", "-e", "fetch\('http:\/\/127\.0\.0\.1:/)
		expect(check).toContain("status === 'healthy'")
		expect(text).not.toMatch(/curl|wget|localhost/)
	})

	test("starts without a shell, so that signals reach it", () => {
		expect(all("CMD")).toEqual(['CMD ["node", "main.js"]'])
		expect(all("ENTRYPOINT")).toEqual([])
	})
})
