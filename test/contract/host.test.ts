// What every host promises, asked of this machine, of a directory that stands in for one, and of a real sshd.

import { execFileSync } from "node:child_process"
import { createHash } from "node:crypto"
import { chmod, mkdir, mkdtemp, readdir, readFile, rm, stat, symlink, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { PassThrough, Readable } from "node:stream"
import { afterAll, beforeAll, describe, expect, it } from "vitest"
import { OperatorError } from "../../src/lib/errors.ts"
import { command, withOptions } from "../../src/lib/host/command.ts"
import { type Host, readOnlyHost } from "../../src/lib/host/host.ts"
import { isLocal, localHost } from "../../src/lib/host/local.ts"
import { openSshHost } from "../../src/lib/host/ssh.ts"
import { processesWith, until } from "../support/processes.ts"
import { openTestSshd, type TestSshd } from "../support/sshd.ts"

type World = {
	open(signal?: AbortSignal): Promise<Host>
	/** A directory to work in, as the host names it and as the test reaches it. */
	hostDirectory: string
	directory: string
	close(): Promise<void>
}

const environment = { PATH: process.env.PATH, HOME: process.env.HOME }

const worlds: Record<string, () => Promise<World>> = {
	"this machine": async () => {
		const directory = await mkdtemp(join(tmpdir(), "comfyume-host-"))
		return {
			directory,
			hostDirectory: directory,
			open: async (signal) =>
				localHost({ name: "here", environment, ...(signal === undefined ? {} : { signal }) }),
			close: () => rm(directory, { recursive: true, force: true }),
		}
	},
	"a stand-in directory": async () => {
		const root = await mkdtemp(join(tmpdir(), "comfyume-host-"))
		await mkdir(join(root, "work"))
		return {
			directory: join(root, "work"),
			hostDirectory: "/work",
			open: async (signal) =>
				localHost({ name: "stand-in", root, environment, ...(signal === undefined ? {} : { signal }) }),
			close: () => rm(root, { recursive: true, force: true }),
		}
	},
	"a host behind SSH": async () => {
		const sshd: TestSshd = await openTestSshd()
		const directory = await mkdtemp(join(tmpdir(), "comfyume-host-"))
		return {
			directory,
			hostDirectory: directory,
			open: (signal = new AbortController().signal) =>
				openSshHost({
					name: "test-1",
					address: sshd.address,
					port: sshd.port,
					user: sshd.user,
					knownHosts: sshd.knownHosts,
					keyFiles: [sshd.keyFile],
					connectTimeoutMs: 10_000,
					keepaliveMs: 10_000,
					sudo: false,
					signal,
				}),
			close: async () => {
				await sshd[Symbol.asyncDispose]()
				await rm(directory, { recursive: true, force: true })
			},
		}
	},
}

const torture = [
	"plain",
	"with spaces  and\ttabs",
	"'single' \"double\"",
	["$HOME", "${", "HOME} $(id) `id`"].join(" "),
	"line\nbreak\n",
	"\\ back\\slashes \\n",
	"ümläut 映画 🎬",
	"--leading-dashes",
	"-n",
	"",
	"!history; & | < > * ? [a] {b,c} ~ #",
	"'",
]

describe.each(Object.entries(worlds))("a host: %s", (_, openWorld) => {
	let world: World
	let host: Host
	const at = (name: string) => `${world.hostDirectory}/${name}`
	const here = (name: string) => join(world.directory, name)

	beforeAll(async () => {
		world = await openWorld()
		host = await world.open()
	})
	afterAll(async () => {
		await host?.[Symbol.asyncDispose]()
		await world?.close()
	})

	it("hands every argument over as it is", async () => {
		const { stdout } = await host.capture(command("printf", "%s\\0", ...torture))
		expect(stdout.split("\0").slice(0, -1)).toEqual(torture)
	})

	it("hands environment variables over as they are, the secret ones too", async () => {
		const program = withOptions(command("sh", "-c", 'printf "%s|%s" "$PLAIN" "$HIDDEN"'), {
			environment: { PLAIN: "a 'b' $c\nd" },
			secretEnvironment: { HIDDEN: "s3cret 'x' = $y" },
		})
		expect((await host.capture(program, { stdin: "not the secret" })).stdout).toBe(
			"a 'b' $c\nd|s3cret 'x' = $y",
		)
	})

	it("gives the program its input after its secrets", async () => {
		const program = withOptions(command("sh", "-c", 'printf "%s|" "$HIDDEN"; cat'), {
			secretEnvironment: { HIDDEN: "s3cret" },
		})
		expect((await host.capture(program, { stdin: "input" })).stdout).toBe("s3cret|input")
	})

	it("has the programs of sbin and speaks English", async () => {
		const { stdout } = await host.capture(command("sh", "-c", 'printf "%s %s" "$LC_ALL" "$PATH"'))
		expect(stdout).toMatch(/^C\.UTF-8 .*\/usr\/sbin/)
	})

	it("runs in the directory that is asked for", async () => {
		await mkdir(here("a directory"), { recursive: true })
		const { stdout } = await host.capture(
			withOptions(command("pwd"), { workingDirectory: at("a directory") }),
		)
		expect(stdout).toBe(`${here("a directory")}\n`)
	})

	it("fails with the exit code and the last words of the program", async () => {
		const failing = host.execute(command("sh", "-c", "echo one >&2; echo two >&2; exit 7"))
		await expect(failing).rejects.toThrow(/exit code 7: one \| two$/)
		await expect(failing).rejects.toBeInstanceOf(OperatorError)
	})

	it("takes the exit codes that are allowed, and those above 128 as what they are", async () => {
		const finished = await host.capture(command("sh", "-c", "echo said; exit 143"), {
			allowedExitCodes: [143],
		})
		expect(finished).toEqual({ exitCode: 143, stdout: "said\n", stderr: "" })
	})

	it("tests by exit code, and a program that isn't there fails the test", async () => {
		expect(await host.test(command("true"))).toBe(true)
		expect(await host.test(command("false"))).toBe(false)
		expect(await host.test(command("comfyume-no-such-program"))).toBe(false)
	})

	it("names a program that isn't there and how to get it", async () => {
		await expect(host.capture(command("comfyume-no-such-program"))).rejects.toMatchObject({
			message: expect.stringMatching(/^comfyume-no-such-program is not installed on /),
			hint: "apt-get install comfyume-no-such-program",
		})
	})

	it("says which signal ended a program", async () => {
		await expect(host.capture(command("sh", "-c", "kill -TERM $$"))).rejects.toThrow(/killed by SIGTERM/)
		await expect(host.capture(command("sh", "-c", "kill -KILL $$"))).rejects.toThrow(/killed by SIGKILL/)
	})

	it("captures 30 MiB", async () => {
		const { stdout } = await host.capture(command("sh", "-c", "yes 0123456789abcde | head -c 31457280"))
		expect(stdout.length).toBe(30 * 1024 * 1024)
	})

	it("refuses to hold more than 64 MiB", async () => {
		await expect(host.capture(command("sh", "-c", "yes | head -c 70000000"))).rejects.toThrow(
			/more than 64 MiB/,
		)
	})

	it("streams output no faster than it is taken", async () => {
		let atOnce = 0
		let total = 0
		const digest = createHash("sha256")
		await host.capture(command("sh", "-c", "yes 0123456789abcde | head -c 31457280"), {
			onStdout: async (chunk) => {
				expect(++atOnce).toBe(1)
				await new Promise((resolve) => setImmediate(resolve))
				digest.update(chunk)
				total += chunk.length
				atOnce--
			},
		})
		expect(total).toBe(30 * 1024 * 1024)
		expect(digest.digest("hex")).toBe(
			createHash("sha256").update("0123456789abcde\n".repeat(1_966_080)).digest("hex"),
		)
	})

	it("holds a fast program back while its output isn't taken", async () => {
		const produced = here("produced")
		const controller = new AbortController()
		const running = host.capture(
			command(
				"sh",
				"-c",
				'for i in 1 2 3 4 5 6 7 8 9 10; do head -c 4194304 /dev/zero; echo $i >"$1"; done',
				"sh",
				produced,
			),
			{ onStdout: () => new Promise(() => {}), signal: controller.signal },
		)
		running.catch(() => {})
		let last = ""
		let same = 0
		await until("the program stands still", async () => {
			const now = await readFile(produced, "utf8").catch(() => "")
			same = now === last ? same + 1 : 0
			last = now
			return same > 25
		})
		expect(Number(last)).toBeLessThan(5)
		controller.abort()
		await expect(running).rejects.toThrow(/stopped/)
	})

	it("hands standard error over as it comes", async () => {
		let heard = ""
		const finished = await host.capture(command("sh", "-c", "echo talk >&2"), {
			onStderr: (chunk) => {
				heard += chunk
			},
		})
		expect([heard, finished.stderr]).toEqual(["talk\n", "talk\n"])
	})

	it("feeds text, bytes and streams, and nothing", async () => {
		const bytes = Buffer.from([0, 255, 10, 13, 0])
		const digestOf = async (stdin?: string | Uint8Array | Readable) =>
			(await host.capture(command("sha256sum"), stdin === undefined ? {} : { stdin })).stdout.slice(0, 64)
		const sha256 = (content: string | Uint8Array) => createHash("sha256").update(content).digest("hex")
		expect(await digestOf()).toBe(sha256(""))
		expect(await digestOf("tëxt\n")).toBe(sha256("tëxt\n"))
		expect(await digestOf(bytes)).toBe(sha256(bytes))
		const block = Buffer.alloc(1024 * 1024, 7)
		expect(await digestOf(Readable.from(Array.from({ length: 20 }, () => block)))).toBe(
			sha256(Buffer.alloc(20 * 1024 * 1024, 7)),
		)
	})

	it("isn't held up by input that the program doesn't want", async () => {
		const { stdout } = await host.capture(command("head", "-c", "3"), { stdin: Buffer.alloc(8_000_000, "x") })
		expect(stdout).toBe("xxx")
		const endless = new PassThrough()
		endless.write("first\n")
		expect((await host.capture(command("head", "-n", "1"), { stdin: endless })).stdout).toBe("first\n")
		endless.destroy()
	})

	it("ends a program whose time is up", async () => {
		const marker = `1000.${Math.floor(Math.random() * 1e6)}1`
		await expect(host.capture(withOptions(command("sleep", marker), { timeoutMs: 300 }))).rejects.toThrow(
			/no end after 300 ms/,
		)
		await until("the program is gone", async () => (await processesWith(marker)).length === 0)
	})

	it("ends a program and its children when it is aborted", async () => {
		const marker = `1000.${Math.floor(Math.random() * 1e6)}2`
		const controller = new AbortController()
		const running = host.capture(command("sh", "-c", "sleep $0; sleep $0", marker), {
			signal: controller.signal,
		})
		running.catch(() => {})
		await until("the program runs", async () => (await processesWith(`sleep ${marker}`)).length >= 1)
		controller.abort(new OperatorError("stopped by SIGINT", { exitCode: 130 }))
		await expect(running).rejects.toMatchObject({ exitCode: 130, message: expect.stringMatching(/stopped$/) })
		await until("the program is gone", async () => (await processesWith(marker)).length === 0)
	})

	it("ends a program that doesn't read its input when it is aborted", async () => {
		const marker = `1000.${Math.floor(Math.random() * 1e6)}3`
		const controller = new AbortController()
		const running = host.capture(command("sleep", marker), {
			stdin: Buffer.alloc(20_000_000),
			signal: controller.signal,
		})
		running.catch(() => {})
		await until("the program runs", async () => (await processesWith(marker)).length >= 1)
		controller.abort()
		await expect(running).rejects.toThrow(/stopped/)
		await until("the program is gone", async () => (await processesWith(marker)).length === 0)
	})

	it("starts nothing once its own signal is aborted", async () => {
		const controller = new AbortController()
		await using stopping = await world.open(controller.signal)
		controller.abort()
		await expect(stopping.execute(command("touch", here("too late")))).rejects.toThrow(/stopped/)
		await expect(stat(here("too late"))).rejects.toThrow(/ENOENT/)
	})

	it("runs twenty programs at once", async () => {
		const answers = await Promise.all(
			Array.from({ length: 20 }, (_, number) =>
				host.capture(command("sh", "-c", "sleep 0.05; echo $0", String(number))),
			),
		)
		expect(answers.map(({ stdout }) => Number(stdout))).toEqual([...Array(20).keys()])
	})

	it("reads what it wrote, whatever the bytes", async () => {
		const every = Buffer.from(Array.from({ length: 1024 }, (_, index) => index % 256))
		await host.write(at("bytes"), every, { mode: 0o644 })
		expect(await host.read(at("bytes"))).toEqual(every)
		await host.write(at("empty"), "", { mode: 0o644 })
		expect(await host.read(at("empty"))).toEqual(Buffer.alloc(0))
	})

	it("writes under names that a shell would trip over", async () => {
		const name = "-n 'a' $(id) \"b\" ü.txt"
		await host.write(at(name), "content", { mode: 0o600 })
		expect(await readFile(here(name), "utf8")).toBe("content")
		expect((await host.read(at(name)))?.toString()).toBe("content")
	})

	it("says undefined of a file that isn't there, and of a link into nowhere", async () => {
		await symlink(here("nowhere"), here("dangling"))
		await writeFile(here("a file"), "")
		expect(await host.read(at("missing"))).toBeUndefined()
		expect(await host.read(at("missing/below"))).toBeUndefined()
		expect(await host.read(at("a file/below"))).toBeUndefined()
		expect(await host.read(at("dangling"))).toBeUndefined()
	})

	it("doesn't take a directory for a file", async () => {
		await mkdir(here("folder"))
		await expect(host.read(at("folder"))).rejects.toThrow(/reading .*folder/)
		await expect(host.write(at("folder"), "x", { mode: 0o644 })).rejects.toThrow(/writing .*folder/)
		expect((await readdir(world.directory)).filter((name) => name.endsWith(".partial"))).toEqual([])
	})

	it("gives a file exactly the mode asked for, whatever it had before", async () => {
		for (const mode of [0o600, 0o644, 0o755, 0o666, 0o640]) {
			await host.write(at("mode"), "x", { mode })
			expect((await stat(here("mode"))).mode & 0o7777).toBe(mode)
		}
	})

	it("lets nobody read a private file while it is being put", async () => {
		const source = join(world.directory, "private-source")
		await writeFile(source, Buffer.alloc(24 * 1024 * 1024, 1))
		const modes = new Set<number>()
		let watching = true
		const watch = (async () => {
			while (watching) {
				for (const name of await readdir(world.directory)) {
					if (!name.startsWith("private-target")) continue
					const seen = await stat(here(name)).catch(() => undefined)
					if (seen !== undefined) modes.add(seen.mode & 0o777)
				}
				await new Promise((resolve) => setImmediate(resolve))
			}
		})()
		await host.put(source, at("private-target"), { mode: 0o600 })
		watching = false
		await watch
		expect([...modes]).toEqual([0o600])
	})

	it("replaces a file as a whole under the eyes of readers", async () => {
		const contents = ["a", "b", "c"].map((letter) => letter.repeat(200_000))
		await host.write(at("replaced"), contents[0] ?? "", { mode: 0o644 })
		let writing = true
		const seen: string[] = []
		const reader = (async () => {
			while (writing) {
				const content = await readFile(here("replaced"), "utf8")
				seen.push(`${content.length} of ${content[0]} only: ${content === content[0]?.repeat(200_000)}`)
			}
		})()
		for (let round = 0; round < 12; round++)
			await host.write(at("replaced"), contents[round % 3] ?? "", { mode: 0o644 })
		writing = false
		await reader
		expect(new Set(seen).size).toBeGreaterThan(1)
		for (const line of seen) expect(line).toMatch(/^200000 of [abc] only: true$/)
	})

	it("puts and gets 45 MB, byte for byte, and says how far it is", async () => {
		const source = join(world.directory, "large")
		const block = createHash("sha512").update("block").digest()
		const content = Buffer.alloc(45_000_000)
		for (let offset = 0; offset < content.length; offset += 64) block.copy(content, offset)
		content.writeUInt32LE(12345, 44_999_990)
		await writeFile(source, content)
		const progress: number[] = []
		await host.put(source, at("large-there"), { mode: 0o644, onProgress: (done) => progress.push(done) })
		expect(progress.at(-1)).toBe(content.length)
		await host.get(at("large-there"), join(world.directory, "large-back"), { mode: 0o600 })
		expect((await readFile(join(world.directory, "large-back"))).equals(content)).toBe(true)
		expect((await stat(join(world.directory, "large-back"))).mode & 0o777).toBe(0o600)
		expect((await readdir(world.directory)).filter((name) => name.endsWith(".partial"))).toEqual([])
	})

	it("says what is wrong when there is nothing to put or to get", async () => {
		await expect(host.put(join(world.directory, "no-source"), at("x"), { mode: 0o644 })).rejects.toThrow(
			OperatorError,
		)
		await expect(host.get(at("no-source"), join(world.directory, "y"), { mode: 0o644 })).rejects.toThrow(
			/no-source/,
		)
		await expect(host.write(at("no/such/folder"), "x", { mode: 0o644 })).rejects.toThrow(
			/writing .*no\/such\/folder/,
		)
		expect((await readdir(world.directory)).filter((name) => name.endsWith(".partial"))).toEqual([])
	})

	it("is kept from changing anything when it is read-only", async () => {
		const reading = readOnlyHost(host)
		await host.write(at("kept"), "kept", { mode: 0o644 })
		expect((await reading.read(at("kept")))?.toString()).toBe("kept")
		expect((await reading.capture(command("echo", "looking"))).stdout).toBe("looking\n")
		expect(await reading.test(command("true"))).toBe(true)
		expect(() => reading.execute(command("touch", at("kept")))).toThrow(/dry run/)
		expect(() => reading.write(at("kept"), "changed", { mode: 0o644 })).toThrow(/dry run/)
		expect(() => reading.put(here("kept"), at("new"), { mode: 0o644 })).toThrow(/dry run/)
		if (isLocal(reading)) expect(() => reading.files.remove(at("kept"))).toThrow(/dry run: remove .*kept/)
		expect(await readFile(here("kept"), "utf8")).toBe("kept")
	})
})

describe.runIf(process.getuid?.() === 0).each(Object.entries(worlds))(
	"a host, by root: %s",
	(_, openWorld) => {
		let world: World
		let host: Host
		let full: string

		beforeAll(async () => {
			world = await openWorld()
			host = await world.open()
			full = join(world.directory, "full")
			await mkdir(full)
			execFileSync("mount", ["-t", "tmpfs", "-o", "size=1m", "tmpfs", full])
		})
		afterAll(async () => {
			if (full !== undefined) execFileSync("umount", [full])
			await host?.[Symbol.asyncDispose]()
			await world?.close()
		})

		it("says that the disk is full, leaves the old file and nothing half-written", async () => {
			const at = (name: string) => `${world.hostDirectory}/full/${name}`
			await host.write(at("old"), "old", { mode: 0o644 })
			const source = join(world.directory, "two-megabytes")
			await writeFile(source, Buffer.alloc(2_000_000))
			await expect(host.put(source, at("old"), { mode: 0o644 })).rejects.toMatchObject({ exitCode: 7 })
			await expect(host.write(at("old"), Buffer.alloc(2_000_000), { mode: 0o644 })).rejects.toMatchObject({
				exitCode: 7,
			})
			await expect(host.execute(command("cp", source, join(full, "copy")))).rejects.toMatchObject({
				exitCode: 7,
			})
			expect((await host.read(at("old")))?.toString()).toBe("old")
			expect((await readdir(full)).filter((name) => name.endsWith(".partial"))).toEqual([])
		})

		it("gives a file the owner asked for", async () => {
			await host.write(`${world.hostDirectory}/owned`, "x", { mode: 0o640, owner: "nobody:nogroup" })
			const seen = await stat(join(world.directory, "owned"))
			expect(seen.mode & 0o7777).toBe(0o640)
			const isStandIn = world.hostDirectory !== world.directory
			expect(seen.uid).toBe(isStandIn ? 0 : 65534)
		})
	},
)

// Root may do everything, so what an ordinary user may not is asked of a program that gave up root.
describe("permission denied", () => {
	it("is an error that names the file, never a missing file", async () => {
		const directory = await mkdtemp(join(tmpdir(), "comfyume-denied-"))
		try {
			await chmod(directory, 0o700)
			await writeFile(join(directory, "private"), "x", { mode: 0o600 })
			const asNobody = execFileSync(
				process.execPath,
				["--input-type=module", "-e", readAs, join(directory, "private")],
				{ encoding: "utf8" },
			)
			expect(asNobody).toMatch(/^OperatorError: reading .*private: permission denied/)
		} finally {
			await rm(directory, { recursive: true, force: true })
		}
	})
})

const readAs = `
	const { localHost } = await import(${JSON.stringify(new URL("../../src/lib/host/local.ts", import.meta.url).href)})
	if (process.getuid() === 0) process.setuid(65534)
	await localHost({ name: "here", environment: {} }).read(process.argv[1])
		.then((content) => console.log(String(content)), (error) => console.log(String(error)))
`
