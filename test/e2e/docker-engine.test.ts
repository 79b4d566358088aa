// The test world's own Docker Engine: that it is one, and that it leaves nothing behind.
import { expect, it } from "vitest"
import { startDocker } from "../support/docker.ts"
import { baseImages, ensureBaseImages } from "../support/docker-base.ts"
import { describeWith } from "../support/parts.ts"
import { run } from "../support/run.ts"

describeWith("docker", "a Docker Engine of the tests' own", () => {
	it("runs containers that find each other by name, and leaves the machine as it was", async () => {
		const before = await rules()
		{
			await using engine = await startDocker()
			const { docker } = engine
			await ensureBaseImages(engine)
			await docker("network", "create", "try")
			const server = ["python3", "-m", "http.server", "--bind", "0.0.0.0", "8000"]
			await docker("run", "--detach", "--network", "try", "--name", "server", baseImages.python, ...server)
			const ask = [
				"curl",
				"-fsS",
				"--retry-connrefused",
				"--retry",
				"20",
				"--retry-delay",
				"1",
				"http://server:8000/",
			]
			const answer = await docker("run", "--init", "--network", "try", baseImages.python, ...ask)
			expect(answer.stdout).toContain("Directory listing")
			await docker(
				"run",
				"--init",
				baseImages.node,
				"node",
				"-e",
				"process.exit(process.version.startsWith('v24.') ? 0 : 1)",
			)
			expect(await engine.lines("version", "--format", "{{.Server.Version}}")).toEqual([
				expect.stringMatching(/^26\./),
			])
		}
		expect(await rules()).toEqual(before)
	})
})

async function rules(): Promise<string> {
	const filter = await run("iptables", ["--wait", "--list-rules"])
	const nat = await run("iptables", ["--wait", "--table", "nat", "--list-rules"])
	return filter.stdout + nat.stdout
}
