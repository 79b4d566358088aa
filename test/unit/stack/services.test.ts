// The services one by one: order, batches, needs; memory; and that Docker is asked no more than it must.
import { describe, expect, test } from "vitest"
import { OperatorError } from "../../../src/lib/errors.ts"
import { dockerFailure, shared } from "../../../src/lib/stack/docker.ts"
import { requireMemory } from "../../../src/lib/stack/memory.ts"
import { placesOf, servicesOf } from "../../../src/lib/stack/services.ts"
import { isOlder } from "../../../src/lib/steps/stack-engine.ts"
import { stackFor } from "../../support/stack.ts"

const gibibyte = 1024 ** 3

describe("the services", () => {
	test("stand in the order of a start, users in batches of five", () => {
		const services = servicesOf(stackFor(12))
		expect(services.map(({ name }) => name).slice(0, 6)).toEqual([
			...["redis", "queue-manager", "auth-gate", "admin", "nginx", "user001"],
		])
		expect(services.filter(({ user }) => user).map(({ batch }) => batch)).toEqual([
			...[1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3],
		])
		const after = Object.fromEntries(services.map((service) => [service.name, service.after]))
		expect(after["user006"]).toEqual(["queue-manager"])
		expect(after["user007"]).toEqual(["queue-manager", "user006"])
	})

	test("have ports of the host where nginx is the host's, and a worker where it is asked for", () => {
		const names = servicesOf(stackFor(1, { nginx: "host" }), { gpu: true }).map(({ name, ports }) => [
			name,
			ports,
		])
		expect(Object.fromEntries(names)).toEqual({
			...{ redis: [6379], "queue-manager": [3000], "auth-gate": [8090], admin: [8080] },
			...{ worker: [], "worker-agent": [], user001: [8188] },
		})
	})

	test("have every mounted file and directory among what is looked at before a start", () => {
		const stack = stackFor(1)
		const { directory, paths } = stack.configuration
		expect(placesOf(stack, { name: "nginx", user: false })).toContainEqual(
			expect.objectContaining({ path: `${paths.certificates}/key.pem`, kind: "file" }),
		)
		expect(placesOf(stack, { name: "auth-gate", user: false })).toEqual([
			{ path: `${directory}/auth/htpasswd`, kind: "file", hint: "comfyume generate-users" },
		])
		const user = placesOf(stack, { name: "user001", user: true })
		expect(user.map(({ path }) => path).sort()).toEqual(stack.users[0]?.mounts.map(({ from }) => from).sort())
	})
})

describe("the memory budget", () => {
	const services = servicesOf(stackFor(20))
	const spoken = "--env sandbox"

	test("of twenty users fits into 32 GiB, though not if all use what they may", () => {
		const { says, tight } = requireMemory(services, 32 * gibibyte, spoken)
		expect(says).toBe("about 14.21 GiB of 32.00 GiB memory are expected to be used")
		expect(tight).toContain("the limits together are")
		expect(requireMemory(services, 64 * gibibyte, spoken).tight).toBeUndefined()
	})

	test("that can't work is refused with 8, and says which part can, with the door that leads to it", () => {
		const refused = () => requireMemory(services, 4 * gibibyte, spoken)
		expect(refused).toThrow(OperatorError)
		try {
			refused()
		} catch (error) {
			expect(error).toMatchObject({
				exitCode: 8,
				hint: expect.stringMatching(
					/comfyume start --env sandbox --only nginx,admin,user001,user002,user003,user004$/,
				),
			})
		}
	})
})

describe("versions", () => {
	test.each([
		["2.20.3", false],
		["2.20.2", true],
		["2.26.1-4", false],
		["1.29.2", true],
		["3.0.0", false],
		["dev", false],
	])("%s is older than 2.20.3: %s", (version, older) => {
		expect(isOlder(version, [2, 20, 3])).toBe(older)
	})
})

describe("questions that come together", () => {
	test("share the answer of the next time, which begins after they were asked", async () => {
		const answers: PromiseWithResolvers<number>[] = []
		const ask = shared(() => {
			const answer = Promise.withResolvers<number>()
			answers.push(answer)
			return answer.promise
		})
		const first = ask()
		const others = [ask(), ask(), ask()]
		expect(answers).toHaveLength(1)
		answers[0]?.resolve(1)
		expect(await first).toBe(1)
		await Promise.resolve()
		expect(answers).toHaveLength(2)
		answers[1]?.resolve(2)
		expect(await Promise.all(others)).toEqual([2, 2, 2])
	})

	test("begin anew after one that failed", async () => {
		let count = 0
		const ask = shared(async () => {
			count++
			if (count === 1) throw new Error("no answer")
			return count
		})
		const [first, second] = await Promise.allSettled([ask(), ask()])
		expect(first.status).toBe("rejected")
		expect(second).toEqual({ status: "fulfilled", value: 2 })
	})
})

describe("Docker's refusals", () => {
	test.each([
		["docker ps on app-1: exit code 1: Cannot connect to the Docker daemon at unix:///run/docker.sock.", 4],
		[
			"docker ps on app-1: exit code 1: permission denied while trying to connect to the Docker daemon socket",
			4,
		],
		["docker is not installed on app-1", 4],
		["docker compose version on app-1: exit code 1: docker: 'compose' is not a docker command.", 3],
	])("%s", (message, exitCode) => {
		const said = dockerFailure(new OperatorError(message), "app-1")
		expect(said).toMatchObject({ exitCode, hint: expect.any(String) })
	})

	test("that are not known stay as they are", () => {
		const error = new OperatorError("docker compose up on app-1: exit code 1: no such service")
		expect(dockerFailure(error, "app-1")).toBe(error)
	})
})
