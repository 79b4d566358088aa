// What an operator reads when something is wrong: one table. Each line is run as text and as `--json`; both name the
// thing and the place and the next command, and neither shows a stack or a secret.
import { chmodSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync } from "node:fs"
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest"
import {
	createWorld,
	type Ended,
	envFile,
	type RunOptions,
	type Saved,
	secrets,
	type World,
} from "../../support/cli.ts"
import { type GitServer, type GitServerMode, startGitServer } from "../../support/git-server.ts"

type Line = {
	what: string
	/** Makes it wrong; everything is put right again afterwards. */
	arrange?: () => unknown
	words: readonly string[]
	options?: () => RunOptions
	exitCode: number
	says: RegExp
	next: RegExp
}

let world: World
let lost: Saved
let git: GitServer
beforeAll(async () => {
	world = await createWorld()
	git = await startGitServer({ repositories: world.directory, token: secrets.GH_TOKEN })
	expect((await world.run(["backup"])).exitCode).toBe(0)
	await world.loseServer()
	lost = await world.save()
})
afterAll(async () => {
	await git?.[Symbol.asyncDispose]()
	await world?.[Symbol.asyncDispose]()
})
afterEach(async () => {
	world.configure()
	writeSecrets(secrets)
	await lost.load()
})

const writeSecrets = (entries: Readonly<Record<string, string>>) => {
	writeFileSync(world.path("secrets.env"), envFile(entries), { mode: 0o600 })
	chmodSync(world.path("secrets.env"), 0o600)
}
const without = (name: keyof typeof secrets) => {
	const { [name]: _, ...others } = secrets
	writeSecrets(others)
}
const endpoint = (text: string) => () =>
	world.configure((written) => written.replace(/endpoint: .* \}/, `endpoint: "${text}" }`))
const fromR2 = ["restore", "--only", "fail2ban", "--from", "r2"]
const bare = () => ({ bare: true })

const configuration: Line[] = [
	{
		what: "a configuration with several mistakes",
		arrange: () =>
			world.configure((text) => text.replace("role: app", "role: apq").replace("domain:", "domian:")),
		words: ["backup"],
		exitCode: 2,
		says: /comfyume\.yaml:\d+:\d+: environments\.sandbox\S* .*\(and \d+ more\)/,
		next: /comfyume config check --config \S+comfyume\.yaml/,
	},
	{
		what: "no configuration",
		words: ["backup", "--env", "sandbox", "--config", "nowhere.yaml"],
		options: bare,
		exitCode: 2,
		says: /there is no configuration at \S+nowhere\.yaml/,
		next: /--config FILE/,
	},
	{
		what: "an endpoint with .eu in the wrong place",
		arrange: () =>
			world.configure((text) =>
				text
					.replace("provider: s3", "provider: r2")
					.replace(/endpoint: .* \}/, `endpoint: "https://${"0".repeat(32)}.r2.eu.cloudflarestorage.com" }`),
			),
		words: fromR2,
		exitCode: 2,
		says: /comfyume\.yaml:\d+:\d+: environments\.sandbox\.objectStore\.buckets\.cache\.endpoint .*eu/,
		next: /https:\/\/\S+\.eu\.r2\.cloudflarestorage\.com/,
	},
	{
		what: "an environment that is none",
		words: ["backup", "--env", "sandbx"],
		options: () => ({ bare: true, variables: { COMFYUME_CONFIG: world.configuration } }),
		exitCode: 2,
		says: /--env names the environment sandbx; there are sandbox/,
		next: /did you mean --env sandbox\?/,
	},
	{
		what: "no environment",
		words: ["backup"],
		options: () => ({ bare: true, variables: { COMFYUME_CONFIG: world.configuration } }),
		exitCode: 2,
		says: /no environment is named/,
		next: /add --env sandbox/,
	},
	{
		what: "several hosts and no word which",
		arrange: () =>
			world.configure((text) =>
				text.replace(
					"    share:",
					"      - { name: gpu-1, role: worker, connection: directory, directory: ./gpu }\n    share:",
				),
			),
		words: ["backup"],
		exitCode: 2,
		says: /sandbox has several hosts: app-1, gpu-1/,
		next: /add --host app-1 or --host gpu-1/,
	},
	{
		what: "an artifact that is none",
		words: ["backup", "--only", "fial2ban"],
		exitCode: 2,
		says: /there is no artifact fial2ban/,
		next: /fail2ban/,
	},
]

const words: Line[] = [
	{
		what: "a date that is none",
		words: ["restore", "--at", "yesterday"],
		exitCode: 2,
		says: /--at.*yesterday.*write a date as in 2026-11-20/,
		next: /comfyume restore --help/,
	},
	{
		what: "a source that is none",
		words: ["restore", "--from", "sfs"],
		exitCode: 2,
		says: /there is no source sfs: local, share, r2, git/,
		next: /comfyume restore --help/,
	},
	{
		what: "an option that is none",
		words: ["backup", "--dryrun"],
		exitCode: 2,
		says: /unknown option '--dryrun' \(Did you mean --dry-run\?\)/,
		next: /comfyume backup --help/,
	},
	{
		what: "a command that is none",
		words: ["restroe"],
		options: bare,
		exitCode: 2,
		says: /unknown command 'restroe' \(Did you mean restore\?\)/,
		next: /comfyume --help/,
	},
]

const credentials: Line[] = [
	{
		what: "missing secrets",
		arrange: () => without("R2_SECRET_ACCESS_KEY"),
		words: fromR2,
		exitCode: 2,
		says: /r2: R2_SECRET_ACCESS_KEY .*cache-backups.*secrets\.env/,
		next: /add R2_SECRET_ACCESS_KEY=… to \S+secrets\.env/,
	},
	{
		what: "a file of secrets that others can read",
		arrange: () => chmodSync(world.path("secrets.env"), 0o644),
		words: ["backup"],
		exitCode: 2,
		says: /secrets\.env can be read or written by others \(mode 644\)/,
		next: /chmod 600 \S+secrets\.env/,
	},
	{
		what: "a secret key that doesn't belong to its ID",
		arrange: () => writeSecrets({ ...secrets, R2_SECRET_ACCESS_KEY: "another-made-up-secret-key" }),
		words: fromR2,
		exitCode: 6,
		says: /r2 \(http\S+ bucket cache-backups\): the signature is wrong/,
		next: /comfyume config check/,
	},
	{
		what: "an access key that is unknown",
		arrange: () => writeSecrets({ ...secrets, R2_ACCESS_KEY_ID: "another-made-up-key-id" }),
		words: fromR2,
		exitCode: 6,
		says: /r2 \(http\S+ bucket cache-backups\): there is no such access key ID/,
		next: /comfyume config check/,
	},
]

const places: Line[] = [
	{
		what: "a bucket that isn't there",
		arrange: () => world.configure((text) => text.replace("bucket: cache-backups", "bucket: cache-bakcups")),
		words: fromR2,
		exitCode: 3,
		says: /bucket cache-bakcups\): there is no such bucket/,
		next: /comfyume config show/,
	},
	{
		what: "an endpoint where nobody listens",
		arrange: endpoint("http://127.0.0.1:1"),
		words: fromR2,
		exitCode: 4,
		says: /r2 \(http:\/\/127\.0\.0\.1:1, bucket cache-backups\): the connection is refused/,
		next: /check the endpoint/,
	},
	{
		what: "an endpoint whose name nobody knows",
		// A part of more than 63 letters: no name server has to be asked.
		arrange: endpoint(`https://${"n".repeat(64)}.example.test`),
		words: fromR2,
		exitCode: 4,
		says: /n{64}\.example\.test, bucket cache-backups\): there is no such host name/,
		next: /check the endpoint/,
	},
	{
		what: "a share that isn't there, in a backup",
		arrange: () => rmSync(world.share, { recursive: true }),
		words: ["backup", "--only", "ssh-host-keys"],
		exitCode: 4,
		says: /share.* does not exist/,
		next: /ls -ld \S+; compare share\.directory/,
	},
	{
		what: "a share that isn't there, in a restore from it",
		arrange: () => rmSync(world.share, { recursive: true }),
		words: ["restore", "--only", "ufw", "--from", "share"],
		exitCode: 4,
		says: /share.* does not exist/,
		next: /ls -ld \S+; compare share\.directory/,
	},
	{
		what: "no zstd",
		arrange: () => {
			const bin = world.path("bin-without-zstd")
			rmSync(bin, { recursive: true, force: true })
			mkdirSync(bin)
			for (const directory of ["/usr/sbin", "/usr/bin"])
				for (const name of readdirSync(directory))
					if (!/zstd/.test(name)) symlinkIfNew(`${directory}/${name}`, `${bin}/${name}`)
		},
		words: ["restore", "--only", "fail2ban"],
		options: () => ({ variables: { PATH: world.path("bin-without-zstd") } }),
		exitCode: 3,
		says: /zstd is not installed on app-1/,
		next: /apt-get install zstd/,
	},
]

function symlinkIfNew(target: string, path: string): void {
	try {
		symlinkSync(target, path)
	} catch {
		// Both directories have it.
	}
}

const gitModes: [GitServerMode | "stopped" | "no token", number, RegExp, RegExp][] = [
	["expired", 6, /doesn't take the token: GH_TOKEN is expired, revoked or mistyped/, /make a new token/],
	["no-access", 6, /isn't visible to the token/, /give the token access to this repository/],
	["no-scope", 6, /knows the token and refuses it: it lacks the scope/, /read access/],
	["unavailable", 4, /answers with HTTP status 503/, /try again/],
	["stopped", 4, /project\.git can't be reached: .*ECONNREFUSED/, /git ls-remote http/],
	["no token", 6, /asks for a token, and there is no GH_TOKEN/, /put GH_TOKEN=… into/],
]

const remotes = gitModes.map(
	([mode, exitCode, says, next]): Line => ({
		what: `a git remote: ${mode}`,
		arrange: async () => {
			world.configure((text) => text.replaceAll(/remote: \S+,/g, `remote: "${git.url}/project.git",`))
			if (mode === "no token") return without("GH_TOKEN")
			if (mode === "stopped") return git.stop()
			git.mode = mode
		},
		words: ["restore", "--only", "project"],
		exitCode,
		says: new RegExp(`${says.source}`),
		next,
	}),
)

/** What of an end an operator reads as its reason, and what as the next thing to do. */
function reasonsOf({ events }: Ended): { says: string[]; next: string[] } {
	const failures = events.filter(
		(event) => event.event === "error" || (event.event === "step" && event.outcome === "failed"),
	)
	return {
		says: failures.map((event) =>
			"because" in event ? (event.because ?? "") : "message" in event ? event.message : "",
		),
		next: failures.flatMap((event) => ("hint" in event ? (event.hint ?? []) : [])),
	}
}

describe.each([
	{ group: "configuration", lines: configuration },
	{ group: "words", lines: words },
	{ group: "credentials", lines: credentials },
	{ group: "places", lines: places },
	{ group: "git", lines: remotes },
])("$group", ({ group, lines }) => {
	afterEach(async () => {
		if (group !== "git") return
		git.mode = "normal"
		await git.stop()
		await git.start()
	})

	test.each(lines)(
		"$what ends with $exitCode",
		async ({ arrange, words: line, options, exitCode, says, next }) => {
			await arrange?.()
			const told = await world.run(line, options?.())
			expect(told.exitCode, told.stderr).toBe(exitCode)
			expect(told.stdout).toMatch(/^$|NOT OK: /)
			const flat = told.stderr.replaceAll(/\n {2}(?!next:|try:)/g, " ")
			const reasons = flat.split("\n").filter((text) => /^(comfyume|failed): /.test(text))
			expect(reasons, told.stderr).toHaveLength(1)
			expect(reasons[0]).toMatch(says)
			expect(flat).toMatch(new RegExp(`\\n {2}(next|try): [^\\n]*(${next.source})`))
			expect(told.stderr).not.toMatch(/\n\s+at |a bug|undefined|\[object/)

			const asEvents = await world.run([...line, "--json"], options?.())
			expect(asEvents.exitCode).toBe(exitCode)
			// Words that make no command are told before anybody has read `--json`.
			if (group === "words") return
			const found = reasonsOf(asEvents)
			expect(found.says).toEqual([expect.stringMatching(says)])
			expect(found.next).toEqual([expect.stringMatching(next)])
		},
	)
})
