// `comfyume generate-users` and `comfyume env` as a shell sees them.
import { execFile } from "node:child_process"
import {
	chmodSync,
	cpSync,
	existsSync,
	mkdirSync,
	mkdtempSync,
	readFileSync,
	realpathSync,
	rmSync,
	statSync,
	symlinkSync,
	writeFileSync,
} from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest"
import { readEnvFile } from "../../../src/lib/formats/env-file.ts"
import { install, inventory } from "../../support/cli.ts"
import { describeWith } from "../../support/parts.ts"
import { run } from "../../support/run.ts"

const root = fileURLToPath(new URL("../../..", import.meta.url))
let directory = ""
let program = ""
let launcher = ""
const at = (...parts: string[]) => join(directory, ...parts)
const text = (path: string) => readFileSync(at("stack", path), "utf8")

beforeAll(async () => {
	program = mkdtempSync(join(tmpdir(), "comfyume-program-"))
	launcher = await install(program)
})
afterAll(() => rmSync(program, { recursive: true, force: true }))

beforeEach(() => {
	directory = realpathSync(mkdtempSync(join(tmpdir(), "comfyume-users-")))
	for (const name of ["outputs", "inputs", "models"]) mkdirSync(at(name))
	writeFileSync(
		at("comfyume.yaml"),
		`version: 1
environments:
  sandbox:
    domain: workshop.example.test
    allowStandIns: true
    hosts: [{ name: app-1, role: app, connection: directory, directory: ./server }]
    git:
      project: { remote: ./project.git, branch: main, path: /project }
      scripts: { remote: ./scripts.git, branch: main, path: /scripts }
    stack:
      directory: ${at("stack")}
      users: 2
      paths: { outputs: ${at("outputs")}, inputs: ${at("inputs")}, models: ${at("models")}, shareOutputs: ${at("share-outputs")} }
`,
	)
})
afterEach(() => rmSync(directory, { recursive: true, force: true }))

type Ended = { exitCode: number; stdout: string; stderr: string }

function comfyume(...words: string[]): Promise<Ended> {
	const options = {
		cwd: directory,
		env: { PATH: process.env["PATH"], HOME: directory, COMFYUME_ENV: "sandbox" },
	}
	return new Promise((resolve, reject) => {
		execFile(process.execPath, [launcher, ...words], options, (error, stdout, stderr) => {
			// Whatever it says, it says no secret.
			for (const password of existsSync(at("stack/credentials.env"))
				? [...passwords().values(), ...secrets()]
				: [])
				if (`${stdout}${stderr}`.includes(password)) reject(new Error(`${words.join(" ")} shows a secret`))
			resolve({ exitCode: error === null ? 0 : Number(error.code), stdout, stderr })
		})
	})
}

const entries = (file: string) => readEnvFile(text(file)).entries
const passwords = () =>
	new Map(
		entries("credentials.env").map(({ value }) => {
			const colon = value.indexOf(":")
			return [value.slice(0, colon), value.slice(colon + 1)] as const
		}),
	)
const secrets = () =>
	existsSync(at("stack/.env"))
		? entries(".env")
				.filter(({ name }) => /PASSWORD|SECRET|KEY|TOKEN/.test(name))
				.map(({ value }) => value)
				.filter((value) => value.length > 5)
		: []

describe("generate-users", () => {
	test("writes a new stack, and a second run changes nothing", async () => {
		expect(await comfyume("generate-users")).toMatchObject({
			exitCode: 0,
			stdout: expect.stringContaining("new: compose.yaml\n"),
			stderr: expect.stringMatching(
				/applied: Files of the stack: in \S+\/stack: 2 users \(user001–user002\), 7 containers/,
			),
		})
		const before = inventory(at("stack"))
		const second = await comfyume("generate-users")
		expect({ exitCode: second.exitCode, stdout: second.stdout }).toEqual({ exitCode: 0, stdout: "" })
		expect(second.stderr).toContain("2 already right")
		expect(second.stderr).not.toContain("applied")
		expect(inventory(at("stack"))).toEqual(before)
		for (const name of ["credentials.env", ".env", "auth/htpasswd", "nginx/proxy-secret.conf"])
			expect(before.get(`/${name}`)).toMatch(/^file 600 /)
		for (const password of passwords().values()) expect(password).toMatch(/^[A-Za-z0-9_-]{24}$/)
	})

	test("keeps every other password when users come, go or get a new one", async () => {
		await comfyume("generate-users", "--count", "3")
		const first = passwords()
		const hashes = text("auth/htpasswd").split("\n")
		await comfyume("generate-users", "--add", "user007", "--rotate", "user002", "--remove", "user003")
		const second = passwords()
		expect([...second.keys()]).toEqual(["user001", "user002", "user007", "admin"])
		for (const name of ["user001", "admin"]) expect(second.get(name)).toBe(first.get(name))
		expect(second.get("user002")).not.toBe(first.get("user002"))
		expect(text("auth/htpasswd").split("\n")).toContain(hashes[0])
		expect(text("compose.users.yaml")).toContain("comfy-user007")
		expect(text("compose.users.yaml")).not.toContain("comfy-user003")
		expect(text(".env")).not.toContain("USER003")
	})

	test("never deletes data: who is added again finds it", async () => {
		await comfyume("generate-users")
		const picture = at("outputs/user002/picture.png")
		const workflow = at("stack/user_data/user002/default/workflows/mine.json")
		writeFileSync(picture, "pixels")
		writeFileSync(workflow, "{}")
		const removed = await comfyume("generate-users", "--remove", "user002")
		expect(removed.stderr).toContain(`${at("outputs/user002")} is of nobody in the roster; it stays`)
		expect(existsSync(picture)).toBe(true)
		const { stdout } = await comfyume("generate-users", "--add", "user002")
		expect(stdout).not.toContain("directory:")
		expect(readFileSync(picture, "utf8")).toBe("pixels")
		expect(readFileSync(workflow, "utf8")).toBe("{}")
	})

	test("makes no directories below a mount point that isn't there, and says so", async () => {
		rmSync(at("models"), { recursive: true })
		const { exitCode, stderr } = await comfyume("generate-users")
		expect(exitCode).toBe(3)
		expect(stderr).toContain(`${at("models")} is not there: nothing is made below it`)
		expect(stderr).toContain(`  try: findmnt ${at("models")}`)
		expect(existsSync(at("models"))).toBe(false)
		expect(existsSync(at("outputs/user001"))).toBe(true)
	})

	test("makes nothing through a link that a user's code has put there", async () => {
		await comfyume("generate-users")
		mkdirSync(at("elsewhere"))
		rmSync(at("stack/user_data/user001/default"), { recursive: true })
		symlinkSync(at("elsewhere"), at("stack/user_data/user001/default"))
		const { exitCode, stderr } = await comfyume("generate-users")
		expect(exitCode).not.toBe(0)
		expect(stderr).toContain("is a link")
		expect(inventory(at("elsewhere")).size).toBe(0)
	})

	test("a dry run shows what would change, without secrets, and writes nothing", async () => {
		expect((await comfyume("generate-users", "--dry-run")).stdout).toContain("new: compose.yaml")
		expect(existsSync(at("stack"))).toBe(false)
		await comfyume("generate-users")
		const before = inventory(directory)
		const { stdout, stderr } = await comfyume("generate-users", "--add", "user009", "--dry-run")
		expect(stdout).toContain("  + \tuser009 comfy-user009:8188;")
		expect(stdout).toContain("changed: auth/htpasswd\nchanged: nginx/comfyume.conf")
		expect(stderr).toContain("would apply: Files of the stack")
		expect(inventory(directory)).toEqual(before)
	})

	test("refuses to write into a git working tree, but where git ignores it", async () => {
		await run("git", ["init", "-q", directory])
		for (const words of [
			["generate-users"],
			["env", "render"],
			["generate-users", "--csv", "sheet.csv", "--directory", "/nonexistent/x"],
		]) {
			const { exitCode, stderr } = await comfyume(...words)
			expect({ words, exitCode }).toEqual({ words, exitCode: 8 })
			expect(stderr).toContain("git working tree")
		}
		expect(existsSync(at("stack"))).toBe(false)
		writeFileSync(at(".gitignore"), "stack/\n")
		expect((await comfyume("generate-users")).exitCode).toBe(0)
	})

	test("gives nobody a new password because the credentials file was lost", async () => {
		await comfyume("generate-users")
		const lost = text("credentials.env")
		rmSync(at("stack/credentials.env"))
		const before = inventory(at("stack"))
		const { exitCode, stderr } = await comfyume("generate-users")
		expect(exitCode).toBe(8)
		expect(stderr).toContain("3 users have passwords")
		expect(inventory(at("stack"))).toEqual(before)
		writeFileSync(at("saved.env"), lost)
		await comfyume("generate-users", "--credentials", "saved.env")
		expect(text("credentials.env")).toBe(lost)
	})

	test("takes older passwords over, odd letters included, and refuses those that would not arrive", async () => {
		writeFileSync(at("old.env"), `USER_CREDENTIALS_USER001='user001:a$b#c "d" /%@:é'\n`)
		await comfyume("generate-users", "--credentials", "old.env")
		expect(passwords().get("user001")).toBe('a$b#c "d" /%@:é')
		for (const line of [
			"USER_CREDENTIALS_USER001=user001:a$b",
			"USER_CREDENTIALS_USER001=user001:it's",
			"USER_CREDENTIALS_USER001=user002:other",
			"USER_CREDENTIALS_USER001=user001:",
			`USER_CREDENTIALS_USER001=user001:${"x".repeat(73)}`,
			"USER_CREDENTIALS_BOB=bob:password",
		]) {
			rmSync(at("stack"), { recursive: true, force: true })
			writeFileSync(at("old.env"), `${line}\n`)
			const { exitCode, stderr } = await comfyume("generate-users", "--credentials", "old.env")
			expect({ line, exitCode, written: existsSync(at("stack")) }).toEqual({
				line,
				exitCode: 2,
				written: false,
			})
			expect(stderr).toContain("old.env:1:")
		}
	})

	test("refuses a roster that nobody meant", async () => {
		await comfyume("generate-users")
		for (const words of [
			["--count", "1"],
			["--count", "501"],
			["--count", "none"],
			["--add", "user501"],
			["--add", "bob"],
			["--remove", "user009"],
			["--remove", "user001", "user002"],
			["--rotate", "user009"],
		])
			expect({ words, exitCode: (await comfyume("generate-users", ...words)).exitCode }).toEqual({
				words,
				exitCode: 2,
			})
	})

	test("changes nothing when one file can't be written", async () => {
		await comfyume("generate-users")
		rmSync(at("stack/compose.yaml"))
		mkdirSync(at("stack/compose.yaml"))
		const before = inventory(at("stack"))
		const { exitCode, stderr } = await comfyume("generate-users", "--add", "user005")
		expect(exitCode).toBe(8)
		expect(stderr).toContain("compose.yaml is a directory")
		expect(inventory(at("stack"))).toEqual(before)
	})

	test("writes a sheet whose links open with the passwords as they are", async () => {
		writeFileSync(at("old.env"), `USER_CREDENTIALS_USER001='user001:p/w@:%#?"&('\n`)
		await comfyume("generate-users", "--credentials", "old.env", "--csv", "sheet.csv")
		const [head, first] = readFileSync(at("sheet.csv"), "utf8").split("\r\n")
		expect(head).toBe("user,password,address,link")
		const link = new URL(first?.slice(first.lastIndexOf(",") + 1) ?? "")
		expect(decodeURIComponent(link.password)).toBe('p/w@:%#?"&(')
		expect(`${link.host}${link.pathname}`).toBe("workshop.example.test/user001/")
		expect(statSync(at("sheet.csv")).mode & 0o777).toBe(0o600)
	})

	test("corrects a file's mode", async () => {
		await comfyume("generate-users")
		chmodSync(at("stack/.env"), 0o644)
		expect((await comfyume("generate-users")).stdout).toBe("mode: .env\n")
		expect(statSync(at("stack/.env")).mode & 0o777).toBe(0o600)
	})
})

describeWith("nginx", "password files, to Apache's own htpasswd", () => {
	test("open with every password of the credentials file, and with no other", async () => {
		await comfyume("generate-users", "--count", "4")
		for (const [name, password] of passwords()) {
			const verify = (stdin: string) =>
				run("htpasswd", ["-iv", at("stack/auth/htpasswd"), name], { stdin, allowedExitCodes: "any" })
			expect((await verify(password)).exitCode).toBe(0)
			expect((await verify(`${password}x`)).exitCode).toBe(3)
		}
		for (const line of text("auth/htpasswd").trim().split("\n")) expect(line).toMatch(/^[a-z0-9]+:\$2y\$10\$/)
	})
})

describe("env render", () => {
	test("makes secrets once, keeps what people put there, and changes one only when asked", async () => {
		expect((await comfyume("env", "render")).stdout).toContain("new secret: REDIS_PASSWORD")
		writeFileSync(at("stack/.env"), `${text(".env")}HUGGINGFACE_TOKEN=hf-made-up\nOWN_THING='a b'\n`)
		const before = new Map(entries(".env").map(({ name, value }) => [name, value]))
		expect((await comfyume("env", "render", "--rotate", "REDIS_PASSWORD")).stdout).toBe(
			"changed: .env\nnew secret: REDIS_PASSWORD\n",
		)
		const after = new Map(entries(".env").map(({ name, value }) => [name, value]))
		expect(after.get("REDIS_PASSWORD")).not.toBe(before.get("REDIS_PASSWORD"))
		for (const name of ["TOKEN_KEY", "PROXY_SECRET", "OWN_THING"])
			expect(after.get(name)).toBe(before.get(name))
		expect(after.get("HF_TOKEN")).toBe("hf-made-up")
		expect(await comfyume("env", "render")).toMatchObject({
			stdout: "",
			stderr: expect.stringContaining("1 already right"),
		})
	})
})

describe("env lint", () => {
	const lint = (content: string, ...words: string[]) => {
		writeFileSync(at("some.env"), content)
		return comfyume("env", "lint", "some.env", ...words)
	}

	test("finds nothing in what is rendered, and ends with 0", async () => {
		cpSync(join(root, "test/golden/container/dotenv"), at("golden.env"))
		await comfyume("generate-users", "--no-make-directories")
		expect(await comfyume("env", "lint", "stack/.env")).toMatchObject({
			exitCode: 0,
			stdout: expect.stringContaining("is right"),
		})
	})

	test("says everything at once, with 3, and as JSON", async () => {
		const { exitCode, stdout } = await lint("APP_SERVER_REDIS_HOST=redis\nDOMIAN=x.example.test\n", "--json")
		expect(exitCode).toBe(3)
		const { findings } = JSON.parse(stdout) as {
			findings: { kind: string; line: number; message: string; fix: string }[]
		}
		expect(findings[0]).toMatchObject({ kind: "renamed", line: 1, fix: "rename it to REDIS_HOST" })
		expect(findings[1]).toMatchObject({ kind: "unknown", line: 2, fix: "did you mean DOMAIN?" })
		expect(findings.slice(2).every(({ kind }) => kind === "missing")).toBe(true)
	})

	test("ends with 2 where there is no file", async () => {
		expect((await comfyume("env", "lint", "nothing.env")).exitCode).toBe(2)
	})
})
