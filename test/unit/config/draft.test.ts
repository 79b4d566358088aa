// What `comfyume init` makes of answers: right by the configuration's own schema, and each answer as it was given.
import fc from "fast-check"
import { describe, expect, test } from "vitest"
import { parse } from "yaml"
import { parseConfiguration, problemsOf } from "../../../src/lib/config/configuration.ts"
import { draftConfiguration } from "../../../src/lib/config/draft.ts"
import { completeAnswers, judgeAnswer, textWith } from "../../../src/lib/config/interview.ts"
import { type Answers, type QuestionName, questions } from "../../../src/lib/config/questions.ts"
import { assertOften } from "../../support/properties.ts"

const account = "0123456789abcdef0123456789abcdef"
const necessary: Answers = {
	environment: "staging",
	domain: "staging.workshop.example.test",
	address: "203.0.113.20",
	projectRemote: "https://github.com/example/project.git",
	scriptsRemote: "git@github.com:example/scripts.git",
}
const mount = "sudo mount -t nfs -o nconnect=16 nfs.example.test:/share /mnt/sfs"
const recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"

const environmentOf = (answers: Answers) =>
	Object.values(parseConfiguration(draftConfiguration(answers), "/x/comfyume.yaml").environments)[0]
const question = (name: QuestionName) => {
	const found = questions.find((one) => one.name === name)
	if (found === undefined) throw new Error(name)
	return found
}
const judged = (name: QuestionName, answer: string, before: Answers = {}) =>
	judgeAnswer(question(name), answer, before)
const refusal = (given: Answers, existing?: { path: string; text: string }) => {
	try {
		completeAnswers(given, existing)
	} catch (error) {
		return error as Error & { hint: string; exitCode: number }
	}
	throw new Error("nothing was refused")
}

describe("the necessary answers alone", () => {
	const answers = completeAnswers(necessary)

	test("are enough, and what is usual is filled in", () => {
		expect(environmentOf(answers)).toMatchObject({
			name: "staging",
			domain: "staging.workshop.example.test",
			hosts: [
				{ name: "staging-1", role: "app", address: "203.0.113.20", port: 22, user: "root", tailnet: "none" },
			],
			git: {
				project: { branch: "main", path: "/home/dev/comfyume-v1" },
				scripts: { remote: "git@github.com:example/scripts.git", path: "/home/dev/comfyume-scripts" },
			},
			stack: { users: 20, nginx: "container", inferenceMode: "redis" },
		})
	})

	test("leave out what there is none of", () => {
		const written = parse(draftConfiguration(answers)).environments.staging
		expect(Object.keys(written)).toEqual(["domain", "hosts", "git", "user", "stack"])
		expect(Object.keys(written.hosts[0])).toEqual(["name", "role", "address", "port", "user"])
	})
})

test("all that can be answered comes to what it says", () => {
	const answers = completeAnswers({
		...necessary,
		environment: "production",
		...{ port: "2222", user: "ops", tailscale: "100.89.38.43", mount, scratchDevice: "/dev/vdb" },
		...{ r2Account: account, imagesBucket: "", otherJurisdiction: "models", platformUser: "maker" },
		...{ projectBranch: "release", users: "007", nginx: "host", inferenceMode: "serverless" },
		recipients: `${recipient}, ${recipient}`,
	})
	expect(environmentOf(answers)).toMatchObject({
		hosts: [
			{ name: "app-1", port: 2222, user: "ops", tailscaleAddress: "100.89.38.43", tailnet: "identity" },
		],
		share: { mount: { whole: mount }, mountPoint: "/mnt/sfs" },
		scratch: { device: "/dev/vdb", path: "/mnt/scratch" },
		objectStore: {
			provider: "r2",
			buckets: {
				cache: {
					bucket: "comfyume-cache-backups",
					endpoint: `https://${account}.eu.r2.cloudflarestorage.com`,
					jurisdiction: "eu",
				},
				models: { endpoint: `https://${account}.r2.cloudflarestorage.com`, jurisdiction: "default" },
				userFiles: { bucket: "comfyume-user-files-backups" },
			},
		},
		git: {
			project: { branch: "release", path: "/home/maker/comfyume-v1" },
			scripts: { branch: "release" },
		},
		user: "maker",
		stack: { users: 7, nginx: "host", inferenceMode: "serverless" },
		backups: { recipients: [recipient, recipient] },
	})
	expect(environmentOf(answers)?.objectStore?.buckets.images).toBeUndefined()
})

test("a worker has no users, no nginx and no inference; it can join a tailnet", () => {
	const answers = completeAnswers({ ...necessary, role: "worker", host: "gpu-1", tailscale: "join" })
	expect(environmentOf(answers)).toMatchObject({
		hosts: [{ name: "gpu-1", role: "worker", tailnet: "join" }],
	})
	expect(environmentOf(answers)?.stack).toBeUndefined()
	expect(refusal({ ...necessary, role: "worker", users: "3" }).message).toContain(
		"--users belongs to an answer",
	)
})

test.each(questions.map(({ name }) => name))(
	"the example of %s is an answer, alone and among others",
	(name) => {
		const { example } = question(name)
		expect(judged(name, example)).toBeUndefined()
		const others = { ...necessary, r2Account: account, scratchDevice: "/dev/vdb" }
		expect(problemsOf(draftConfiguration(completeAnswers({ ...others, [name]: example })), "x")).toEqual([])
	},
)

test.each([
	["environment", "Production", /not an environment's name/],
	["domain", "https://x.example.test/", /not a domain name/],
	["role", "server", /must be app or worker/],
	["host", "App 1", /not a host's name/],
	["address", "root@203.0.113.1", /neither an address/],
	["port", "ssh", /must be a number/],
	["port", "70000", /is 70000/],
	["tailscale", "192.0.2.1", /not a Tailscale address/],
	["mount", "mount /dev/vdb /mnt", /not host:\/path/],
	["scratchDevice", "vdb", /not a device/],
	["r2Account", "comfyume", /does not begin with https/],
	["r2Account", `https://${account}.r2.cloudflarestorage.com.eu`, /has \.eu at the end/],
	["cacheBucket", "Backups/", /not a bucket's name/],
	["otherJurisdiction", "models, model", /model is none of the buckets/],
	["projectRemote", "https://token@github.com/example/x.git", /holds credentials/],
	["projectRemote", "project", /not a git remote/],
	["projectBranch", "-x", /not a branch's name/],
	["projectPath", "~/x", /not an absolute path/],
	["users", "0", /is 0/],
	["nginx", "none at all", /must be container or host/],
	["inferenceMode", "gpu", /must be local or redis or serverless/],
	["recipients", "age1x", /not an age recipient/],
	["recipients", "AGE-SECRET-KEY-1QQQ", /is a private key/],
	["domain", "a\u001b[Db.example.test", /holds a key that is no letter/],
	["domain", "", /needs an answer/],
] as const)("%s can't be %j", (name, answer, says) => {
	const problem = judged(name, answer, { r2Account: account })
	expect(problem?.message).toMatch(says)
	expect(problem?.fix).not.toBe("")
	if (/SECRET/.test(answer)) expect(JSON.stringify(problem)).not.toContain(answer)
})

test("everything that is missing and wrong is told at once, with what to add", () => {
	expect(refusal({ domain: "https://x", users: "many" })).toMatchObject({
		exitCode: 2,
		message: expect.stringMatching(
			/--domain: .*--users: .*--env, --address, --project-remote, --scripts-remote must be said/,
		),
		hint: "add --env production --address 203.0.113.10 --project-remote https://github.com/example/project.git --scripts-remote https://github.com/example/scripts.git",
	})
})

describe("an environment more", () => {
	const existing = { path: "/x/comfyume.yaml", text: draftConfiguration(completeAnswers(necessary)) }
	const production = { ...necessary, environment: "production" }

	test("stands beside those that are there", () => {
		const text = textWith(completeAnswers(production, existing), existing)
		expect(Object.keys(parseConfiguration(text, "/x").environments)).toEqual(["staging", "production"])
	})

	test("has a name of its own, and so has its host", () => {
		expect(refusal(necessary, existing).message).toContain("staging stands in /x/comfyume.yaml already")
		expect(refusal({ ...production, host: "staging-1" }, existing).message).toContain(
			"staging-1 is a host of staging already",
		)
	})
})

// Where each answer that is written as it is stands in the file.
const written: Readonly<Partial<Record<QuestionName, readonly (string | number)[]>>> = {
	domain: ["domain"],
	host: ["hosts", 0, "name"],
	role: ["hosts", 0, "role"],
	address: ["hosts", 0, "address"],
	user: ["hosts", 0, "user"],
	tailscale: ["hosts", 0, "tailscaleAddress"],
	mount: ["share", "mount"],
	scratchDevice: ["scratch", "device"],
	scratchPath: ["scratch", "path"],
	cacheBucket: ["objectStore", "buckets", "cache", "bucket"],
	projectRemote: ["git", "project", "remote"],
	projectBranch: ["git", "project", "branch"],
	projectPath: ["git", "project", "path"],
	scriptsRemote: ["git", "scripts", "remote"],
	platformUser: ["user"],
	nginx: ["stack", "nginx"],
	recipients: ["backups", "recipients", 0],
}
const hostile = fc.oneof(
	fc.string({ unit: "binary" }),
	fc.string({ unit: fc.constantFrom(..."&*!|>'\"%@`{}[],:#-?~ \n\t\\0oxyesnu1.é"), maxLength: 12 }),
	fc.constantFrom(
		"yes",
		"null",
		"~",
		"0o17",
		"1e3",
		"22:22",
		"- x",
		"a: b",
		"a #b",
		"|-\n x",
		"<<",
		"=",
		"2026-11-27",
	),
)

const roomy = completeAnswers({ ...necessary, r2Account: account, scratchDevice: "/dev/x" })

test("no answer can be taken for anything else than its own text", async () => {
	await assertOften(
		fc.property(fc.constantFrom(...(Object.keys(written) as QuestionName[])), hostile, (name, answer) => {
			fc.pre(
				answer.trim() !== "" && answer !== "join" && !(name === "recipients" && /,|^\s|\s$/.test(answer)),
			)
			const answers = { ...roomy, [name]: answer }
			const text = draftConfiguration(answers)
			for (const version of ["1.1", "1.2"] as const) {
				const environment = parse(text, { version }).environments.staging
				const found = written[name]?.reduce((block, key) => block[key], environment)
				expect(found).toBe(answer)
			}
		}),
		300,
	)
})

test("what is accepted one by one is right as a whole", async () => {
	await assertOften(
		fc.property(
			fc.record(
				Object.fromEntries(
					questions.map(({ name, example }) => [
						name,
						fc.oneof(fc.constant(example), fc.constant(""), hostile),
					]),
				),
				{ requiredKeys: [] },
			),
			(given) => {
				let before: Answers = {}
				for (const one of questions) {
					if (one.when?.(before) === false) continue
					const answer = (given as Answers)[one.name] ?? one.usual?.(before) ?? one.example
					const right = judgeAnswer(one, answer, before) === undefined ? answer : one.example
					before = { ...before, [one.name]: right }
				}
				expect(problemsOf(draftConfiguration(before), "x")).toEqual([])
			},
		),
		60,
	)
})
