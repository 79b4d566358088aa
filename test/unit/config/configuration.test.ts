import { readFileSync } from "node:fs"
import { describe, expect, test } from "vitest"
import { chooseEnvironment, parseConfiguration, problemsOf } from "../../../src/lib/config/configuration.ts"
import { jsonSchemaText } from "../../../src/lib/config/schema.ts"

const template = new URL("../../../templates/", import.meta.url)
const example = readFileSync(new URL("comfyume.yaml", template), "utf8")

// The smallest environment that is right; `changes` replace whole top-level keys of it.
function production(changes: Readonly<Record<string, string>> = {}): string {
	const keys: Record<string, string> = {
		domain: "workshop.example.test",
		hosts: "[{ name: app-1, role: app, address: 203.0.113.10 }]",
		git: `{ project: ${repository()}, scripts: ${repository()} }`,
		...changes,
	}
	const lines = Object.entries(keys).map(([key, value]) => `    ${key}: ${value}`)
	return `version: 1\nenvironments:\n  production:\n${lines.join("\n")}\n`
}

const repository = (remote = "https://github.com/example/x.git", more = "") =>
	`{ remote: "${remote}", branch: main, path: /home/dev/x${more} }`

const nfs = "mount: mount -t nfs nfs.example.test:/x /mnt/sfs"
const store = (
	more: string,
	endpoint = "https://0123456789abcdef0123456789abcdef.eu.r2.cloudflarestorage.com",
) => `{ ${more}, buckets: { cache: { bucket: cache-backups, endpoint: "${endpoint}" } } }`

const testing = (text: string) => text.replace("  production:", "  testing:")
const found = (text: string) => problemsOf(text, "comfyume.yaml")

describe("the example", () => {
	test("is right", () => {
		expect(found(example)).toEqual([])
	})

	test("shows production's Tailscale address and keeps the mount command whole", () => {
		const { production } = parseConfiguration(example, "/etc/comfyume/comfyume.yaml").environments
		expect(production?.hosts[0]).toMatchObject({ tailscaleAddress: "100.89.38.43", port: 22, user: "root" })
		expect(production?.share).toMatchObject({
			mountPoint: "/mnt/sfs",
			mount: { whole: expect.stringMatching(/^sudo mount -t nfs -o nconnect=16 .* \/mnt\/sfs$/) },
		})
	})

	test("points editors at the schema, which is the one the program checks by", () => {
		expect(example.split("\n")[0]).toBe("# yaml-language-server: $schema=./comfyume.schema.json")
		expect(readFileSync(new URL("comfyume.schema.json", template), "utf8")).toBe(jsonSchemaText())
	})
})

describe("what is left out", () => {
	test("is filled in with the defaults", () => {
		const { production: environment } = parseConfiguration(
			production({ share: `{ ${nfs} }` }),
			"/x/c.yaml",
		).environments
		expect(environment).toMatchObject({
			name: "production",
			user: "dev",
			directories: { local: "/root/comfyume-backups" },
			restore: { refuseOlderThanHours: 72 },
			allowStandIns: false,
			share: { filesystem: "nfs4", backups: "cache/backups" },
			hosts: [{ connection: "ssh", port: 22, user: "root", keyFiles: [], hostKeys: [] }],
		})
		expect(environment).not.toHaveProperty("objectStore")
		expect(environment).not.toHaveProperty("scratch")
	})
})

describe("paths", () => {
	test("count from the file, and ~ from the home directory", () => {
		const text = testing(
			production({
				hosts: `
      - { name: a, role: app, connection: directory, directory: ./server }
      - { name: b, role: app, address: 203.0.113.10, keyFiles: [~/.ssh/key, keys/b] }`,
				share: "{ filesystem: directory, directory: ../share }",
				git: `{ project: ${repository("./project.git")}, scripts: ${repository()} }`,
				allowStandIns: "true",
			}),
		)
		const environment = parseConfiguration(text, "/srv/world/comfyume.yaml", { homeDirectory: "/home/me" })
			.environments.testing
		expect(environment?.hosts).toMatchObject([
			{ directory: "/srv/world/server" },
			{ keyFiles: ["/home/me/.ssh/key", "/srv/world/keys/b"] },
		])
		expect(environment?.share).toMatchObject({ directory: "/srv/share", mountPoint: "/srv/share" })
		expect(environment?.git.project.remote).toBe("/srv/world/project.git")
	})
})

describe("a mistake is reported with its path, its line and a fix", () => {
	const p = "environments.production"
	const cases: readonly [
		what: string,
		text: string,
		path: string,
		line: number,
		message: RegExp,
		fix: RegExp,
	][] = [
		[
			"an unknown key",
			production({ domian: "x" }),
			`${p}.domian`,
			7,
			/not a known key/,
			/did you mean domain\?/,
		],
		[
			"an unknown key far from all",
			production({ zebra: "x" }),
			`${p}.zebra`,
			7,
			/not a known/,
			/known here: domain, hosts/,
		],
		[
			"an unknown key of a host",
			production({ hosts: "[{ name: a, role: app, address: 203.0.113.1, prot: 1 }]" }),
			`${p}.hosts[0].prot`,
			5,
			/not a known/,
			/did you mean port/,
		],
		[
			"a missing key",
			production().replace(/ {4}domain.*\n/, ""),
			`${p}.domain`,
			3,
			/is missing/,
			/add `domain:` \(a text\)/,
		],
		["an empty key", production({ domain: "" }), `${p}.domain`, 4, /is empty/, /write a text/],
		[
			"a mistyped recipient",
			production({ backups: `\n      recipients:\n        - age1${"q".repeat(58)}` }),
			`${p}.backups.recipients[0]`,
			9,
			/^"age1q+\.\.\." is not an age recipient: mistyped/,
			/age-keygen/,
		],
		[
			"a private key in the place of a recipient, without showing it",
			production({ backups: `{ recipients: ["AGE-SECRET-KEY-1${"Q".repeat(58)}"] }` }),
			`${p}.backups.recipients[0]`,
			7,
			/^is a private key, and belongs in no configuration$/,
			/public half/,
		],
		[
			"another version",
			production().replace("version: 1", "version: 2"),
			"version",
			1,
			/must be 1, not 2/,
			/write 1/,
		],
		[
			"an unknown role",
			production({ hosts: "[{ name: a, role: apq, address: 203.0.113.1 }]" }),
			`${p}.hosts[0].role`,
			5,
			/app or worker/,
			/did you mean app/,
		],
		["no host", production({ hosts: "[]" }), `${p}.hosts`, 5, /has no host/, /add one/],
		[
			"a host without address",
			production({ hosts: "[{ name: a, role: app }]" }),
			`${p}.hosts[0]`,
			5,
			/no address/,
			/add `address:`/,
		],
		[
			"a port that is none",
			production({ hosts: "[{ name: a, role: app, address: 203.0.113.1, port: 65536 }]" }),
			`${p}.hosts[0].port`,
			5,
			/is 65536/,
			/up to 65535/,
		],
		[
			"a port in YAML's old base 60",
			production({ hosts: "[{ name: a, role: app, address: 203.0.113.1, port: 22:22 }]" }),
			`${p}.hosts[0].port`,
			5,
			/a number, not "22:22"/,
			/write a number/,
		],
		[
			"yes for true",
			testing(production({ allowStandIns: "yes" })),
			"environments.testing.allowStandIns",
			7,
			/true or false, not "yes"/,
			/write true/,
		],
		[
			"a commit that YAML takes for a number",
			production({
				git: `{ project: ${repository(undefined, `, commit: ${"1".repeat(40)}`)}, scripts: ${repository()} }`,
			}),
			`${p}.git.project.commit`,
			6,
			/must be a text/,
			/in quotes/,
		],
		[
			"a short commit",
			production({
				git: `{ project: ${repository(undefined, ", commit: 0abcdef")}, scripts: ${repository()} }`,
			}),
			`${p}.git.project.commit`,
			6,
			/not a full commit/,
			/40 digits/,
		],
		[
			"a fingerprint of another kind",
			production({ hosts: '[{ name: a, role: app, address: 203.0.113.1, hostKeys: ["MD5:aa:bb"] }]' }),
			`${p}.hosts[0].hostKeys[0]`,
			5,
			/fingerprint/,
			/ssh-keygen -lf/,
		],
		[
			"a Tailscale address that is none",
			production({ hosts: "[{ name: a, role: app, address: 203.0.113.1, tailscaleAddress: 203.0.113.1 }]" }),
			`${p}.hosts[0].tailscaleAddress`,
			5,
			/not a Tailscale address/,
			/tailscale ip -4/,
		],
		[
			"a directory for a host of production",
			production({ hosts: "[{ name: a, role: app, connection: directory, directory: ./x }]" }),
			`${p}.hosts[0].connection`,
			5,
			/stands in/,
			/allowStandIns/,
		],
		[
			"stand-ins in production",
			production({ allowStandIns: "true" }),
			`${p}.allowStandIns`,
			7,
			/never allowed/,
			/remove/,
		],
		[
			"a ping key over plain http",
			production({ notifications: "{ healthchecks: { url: http://hc.example.test } }" }),
			`${p}.notifications.healthchecks.url`,
			7,
			/plain http/,
			/write https/,
		],
		[
			"a key in the address of notifications",
			production({ notifications: "{ ntfy: { url: https://token@ntfy.example.test } }" }),
			`${p}.notifications.ntfy.url`,
			7,
			/without credentials/,
			/as in https/,
		],
		[
			"plain http in production, even where allowed",
			production({ git: `{ project: ${repository("http://127.0.0.1/x.git")}, scripts: ${repository()} }` }),
			`${p}.git.project.remote`,
			6,
			/plain http/,
			/write https/,
		],
		[
			"a token in a remote",
			production({
				git: `{ project: ${repository("https://x:abc@github.com/x.git")}, scripts: ${repository()} }`,
			}),
			`${p}.git.project.remote`,
			6,
			/holds credentials/,
			/GH_TOKEN/,
		],
		[
			"a remote that runs a command",
			production({ git: `{ project: ${repository("ext::sh -c id")}, scripts: ${repository()} }` }),
			`${p}.git.project.remote`,
			6,
			/not a git remote/,
			/github/,
		],
		[
			"a branch that is an option",
			production({
				git: `{ project: { remote: "https://github.com/x.git", branch: --upload-pack=x, path: /x }, scripts: ${repository()} }`,
			}),
			`${p}.git.project.branch`,
			6,
			/not a branch/,
			/main/,
		],
		[
			"a path with ..",
			production({ directories: "{ local: /root/../etc }" }),
			`${p}.directories.local`,
			7,
			/absolute path/,
			/begin it/,
		],
		[
			"a mount command that is none",
			production({ share: "{ mount: mount /x }" }),
			`${p}.share.mount`,
			7,
			/source and a mount point/,
			/as in: sudo mount/,
		],
		[
			"a share without mount command",
			production({ share: "{ filesystem: nfs4 }" }),
			`${p}.share`,
			7,
			/no mount command/,
			/add `mount:`/,
		],
		[
			"a bind mount called NFS",
			production({ share: "{ mount: mount --bind /a /mnt/sfs }" }),
			`${p}.share.mount`,
			7,
			/mounts bind/,
			/filesystem: bind/,
		],
		[
			"a misplaced .eu",
			production({
				objectStore: store(
					"provider: r2",
					"https://0123456789abcdef0123456789abcdef.r2.cloudflarestorage.com.eu",
				),
			}),
			`${p}.objectStore.buckets.cache.endpoint`,
			7,
			/\.eu at the end/,
			/https:\/\/0123456789abcdef0123456789abcdef\.eu\.r2/,
		],
		[
			"another region than auto",
			production({ objectStore: store("provider: r2, region: us-east-1") }),
			`${p}.objectStore.region`,
			7,
			/only region is auto/,
			/write auto/,
		],
		[
			"an S3 endpoint with a path",
			production({ objectStore: store("provider: s3", "https://s3.example.test/bucket") }),
			`${p}.objectStore.buckets.cache.endpoint`,
			7,
			/not an endpoint/,
			/without path/,
		],
		["a tab", "version: 1\nenvironments:\n\tproduction: {}\n", "", 3, /tab/, /spaces/],
		["an open bracket", "version: 1\nenvironments: [\n", "", 3, /./, /./],
		["two documents", `${production()}---\nversion: 1\n`, "", 7, /./, /one document/],
		[
			"an alias without anchor",
			production({ domain: "*nowhere" }),
			"",
			4,
			/nowhere stands for nothing/,
			/define &nowhere/,
		],
		[
			"a text instead of a block",
			"version: 1\nenvironments: none\n",
			"environments",
			2,
			/a block of keys, not "none"/,
			/./,
		],
		[
			"no environment",
			"version: 1\nenvironments: {}\n",
			"environments",
			2,
			/names no environment/,
			/production/,
		],
		[
			"an environment's name in capitals",
			production().replace("production", "Production"),
			"environments.Production",
			3,
			/not an environment's name/,
			/small letters/,
		],
		["an empty file", "", "", 1, /empty/, /templates\/comfyume.yaml/],
	]
	test("refuses a GPU host whose first worker would be called as the one on the app server", () => {
		const hosts = (name: string) =>
			`[{ name: app-1, role: app, address: 203.0.113.10 }, { name: ${name}, role: worker, address: 203.0.113.20 }]`
		expect(found(production({ hosts: hosts("gpu-1") }))).toEqual([])
		expect(found(production({ hosts: hosts("worker") }))).toEqual([
			expect.objectContaining({
				path: "environments.production.hosts[1].name",
				message: expect.stringContaining("worker-1"),
			}),
		])
	})

	test.each(cases)("%s", (_, text, path, line, message, fix) => {
		const problems = found(text)
		expect(problems.map((problem) => problem.path)).toContain(path)
		const problem = problems.find((candidate) => candidate.path === path)
		expect(problem?.message).toMatch(message)
		expect(problem?.fix).toMatch(fix)
		expect(problem?.line).toBe(line)
	})

	test("a key that stands twice is named, and the rest is checked all the same", () => {
		const problems = found(`${production()}    domain: other.example.test\n    zebra: 1\n`)
		expect(problems.map(({ line, message }) => `${line} ${message}`)).toEqual([
			"7 the key domain stands twice in its block",
			"8 is not a known key",
		])
	})

	test("one host name in two environments", () => {
		const two = `${production()}${testing(production()).split("\n").slice(2).join("\n")}`
		expect(found(two)).toMatchObject([
			{
				path: "environments.testing.hosts[0].name",
				line: 9,
				message: "app-1 is a host of production already",
			},
		])
	})

	test("one Tailscale identity in two environments", () => {
		const host = (name: string) =>
			`[{ name: ${name}, role: app, address: 203.0.113.1, tailscaleAddress: 100.89.38.43 }]`
		const second = testing(production({ hosts: host("b") }))
			.split("\n")
			.slice(2)
			.join("\n")
		expect(found(`${production({ hosts: host("a") })}${second}`)).toMatchObject([
			{
				path: "environments.testing.hosts[0].tailscaleAddress",
				message: "100.89.38.43 belongs to production already",
			},
		])
	})

	test("a mistake in a merged block is placed where it is written", () => {
		const text = production({
			hosts: `
      - &first { name: a, role: app, address: 203.0.113.1, port: 0 }
      - { <<: *first, name: b }`,
		})
		expect(found(text).map(({ path, line }) => [path, line])).toEqual([
			["environments.production.hosts[0].port", 6],
			["environments.production.hosts[1].port", 6],
		])
	})

	test("all of them come at once, in the order of the lines", () => {
		const text = production({
			hosts: "[{ name: A, role: x, port: 0 }]",
			share: "{ mount: x }",
			user: "1",
			zebra: "1",
		})
		const lines = found(text).map(({ line }) => line)
		expect(lines).toEqual([5, 5, 5, 5, 7, 8, 9])
	})
})

describe("plain http", () => {
	const remote = (address: string, more = {}) =>
		testing(production({ git: `{ project: ${repository(address)}, scripts: ${repository()} }`, ...more }))

	test.each(["http://127.0.0.1:3000/x.git", "http://localhost/x.git", "http://[::1]:80/x.git"])(
		"goes to this machine: %s",
		(address) => {
			expect(found(remote(address))).toEqual([])
		},
	)

	test.each(["http://127.0.0.1.example.test/x.git", "http://203.0.113.9/x.git", "HTTP://git.example.test/x"])(
		"goes nowhere else unless allowed: %s",
		(address) => {
			expect(found(remote(address))).toHaveLength(1)
			expect(found(remote(address, { allowPlainHttp: "true" }))).toEqual([])
		},
	)
})

describe("a configuration that is wrong", () => {
	test("is refused with exit code 2, the first problem's place and the number of the others", () => {
		expect(() => parseConfiguration(production({ user: "1", zebra: "1" }), "/x/comfyume.yaml")).toThrow(
			expect.objectContaining({
				message: "/x/comfyume.yaml:7:5: environments.production.user must be a text, not 1 (and 1 more)",
				hint: "comfyume config check --config /x/comfyume.yaml",
				exitCode: 2,
			}),
		)
	})
})

describe("the environment", () => {
	const configuration = parseConfiguration(example, "/x/comfyume.yaml")
	const choose = (option?: string, variable?: string, hostOwnEnvironment?: string) =>
		chooseEnvironment(configuration, { option, variables: { COMFYUME_ENV: variable }, hostOwnEnvironment })
			.name

	test("is what --env says, else $COMFYUME_ENV, else what the host says of itself", () => {
		expect(choose("testing", "staging", "production")).toBe("testing")
		expect(choose(undefined, "staging", "production")).toBe("staging")
		expect(choose(undefined, "", "production")).toBe("production")
	})

	test("is never guessed", () => {
		expect(() => choose()).toThrow(
			expect.objectContaining({
				message: "no environment is named",
				hint: "add --env production or --env staging or --env testing or --env sandbox",
				exitCode: 2,
			}),
		)
	})

	test("that doesn't exist is refused with those there are and the one that was meant", () => {
		expect(() => choose("prodution")).toThrow(
			expect.objectContaining({
				message: "--env names the environment prodution; there are production, staging, testing, sandbox",
				hint: "did you mean --env production?",
				exitCode: 2,
			}),
		)
		expect(() => choose(undefined, "nowhere")).toThrow(/^\$COMFYUME_ENV names/)
	})

	test.each(["constructor", "__proto__", "toString"])(
		"is not found on every object's own ground: %s",
		(name) => {
			expect(() => choose(name)).toThrow(/names the environment/)
		},
	)
})

test("a firewall's rule that ufw would refuse, or that stands there twice, is found before a restore comes to it", () => {
	const withRules = (rules: string) =>
		found(
			production({ hosts: `[{ name: app-1, role: app, address: 203.0.113.10, firewall: [${rules}] }]` }),
		).map(({ path, message }) => `${path} ${message}`)
	expect(withRules('"22/tcp limit", "65535/udp", "22/udp"')).toEqual([])
	expect(withRules('"22/tcp limit", "70000/tcp"')).toEqual([
		"environments.production.hosts[0].firewall[1] 70000/tcp is no port",
	])
	expect(withRules('"22/tcp limit", "22/tcp"')).toEqual([
		"environments.production.hosts[0].firewall[1] 22/tcp stands there already",
	])
})
