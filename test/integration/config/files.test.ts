// Real files: where the configuration and the secrets are found, and which files of secrets are refused.
import { chmod, chown, mkdir, mkdtemp, readFile, realpath, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { inspect } from "node:util"
import { afterEach, beforeEach, describe, expect, test } from "vitest"
import { loadConfiguration, readHostOwnEnvironment } from "../../../src/lib/config/configuration.ts"
import { loadSecrets, secretsFromPayload } from "../../../src/lib/config/secrets.ts"
import { Secret } from "../../../src/lib/secret.ts"

const example = await readFile(new URL("../../../templates/comfyume.yaml", import.meta.url), "utf8")
let directory = ""

beforeEach(async () => {
	directory = await realpath(await mkdtemp(join(tmpdir(), "comfyume-config-")))
	await mkdir(join(directory, "project/below"), { recursive: true })
	await writeFile(join(directory, "project/comfyume.yaml"), example)
})

afterEach(() => rm(directory, { recursive: true, force: true }))

describe("the configuration", () => {
	const load = (from: string, variables = {}, path?: string) =>
		loadConfiguration({
			path,
			variables,
			workingDirectory: join(directory, from),
			systemDirectory: join(directory, "etc"),
		})

	test("is the nearest comfyume.yaml upwards", () => {
		const loaded = load("project/below")
		expect(loaded.path).toBe(join(directory, "project/comfyume.yaml"))
		expect(loaded.text).toBe(example)
	})

	test("is what $COMFYUME_CONFIG says, and --config before that", async () => {
		await writeFile(join(directory, "second.yaml"), example)
		await writeFile(join(directory, "third.yaml"), example)
		const variables = { COMFYUME_CONFIG: "../second.yaml" }
		expect(load("project", variables).path).toBe(join(directory, "second.yaml"))
		expect(load("project", variables, "../third.yaml").path).toBe(join(directory, "third.yaml"))
	})

	test("is the machine's own where there is none upwards", async () => {
		await mkdir(join(directory, "etc"))
		await writeFile(join(directory, "etc/comfyume.yaml"), example)
		expect(load(".").path).toBe(join(directory, "etc/comfyume.yaml"))
		expect(load("project").path).toBe(join(directory, "project/comfyume.yaml"))
	})

	test("that was named and is not there is refused, not looked for elsewhere", () => {
		expect(() => load("project", {}, "nowhere.yaml")).toThrow(
			expect.objectContaining({ message: expect.stringContaining("project/nowhere.yaml"), exitCode: 2 }),
		)
	})

	test("that is nowhere is refused with what to do", () => {
		expect(() => load(".")).toThrow(
			expect.objectContaining({ message: expect.stringMatching(/^no comfyume.yaml in/), exitCode: 2 }),
		)
	})

	test("that is a directory is refused", () => {
		expect(() => load("project", {}, "below")).toThrow(expect.objectContaining({ exitCode: 2 }))
	})
})

test("a host says of itself which environment it is, or nothing", async () => {
	await writeFile(join(directory, "environment"), "production\n")
	expect(readHostOwnEnvironment(join(directory, "environment"))).toBe("production")
	expect(readHostOwnEnvironment(join(directory, "nowhere"))).toBeUndefined()
})

describe("secrets", () => {
	const file = () => join(directory, "project/secrets.env")
	const load = (more: Partial<Parameters<typeof loadSecrets>[0]> = {}) =>
		loadSecrets({
			variables: {},
			workingDirectory: directory,
			systemDirectory: join(directory, "etc"),
			configurationPath: join(directory, "project/comfyume.yaml"),
			...more,
		})
	const secretsFile = (text: string, path = file()) => writeFile(path, text, { mode: 0o600 })
	const keyring = async (name: string) =>
		name === "TAILSCALE_API_KEY" || name === "GH_TOKEN" ? new Secret(`keyring-${name}`) : undefined

	test("come from the environment, then from the file, then from the keyring", async () => {
		await secretsFile("R2_ACCESS_KEY_ID=from-file\nGH_TOKEN=from-file\n")
		const secrets = await load({ variables: { R2_ACCESS_KEY_ID: "from-variable" }, readKeyring: keyring })
		expect(secrets.find("R2_ACCESS_KEY_ID")?.reveal()).toBe("from-variable")
		expect(secrets.find("GH_TOKEN")?.reveal()).toBe("from-file")
		expect(secrets.find("TAILSCALE_API_KEY")?.reveal()).toBe("keyring-TAILSCALE_API_KEY")
		expect(secrets.origin("GH_TOKEN")).toBe(`${file()}:2`)
		expect(secrets.origin("R2_SECRET_ACCESS_KEY")).toBeUndefined()
	})

	test("come from the named file before the one beside the configuration", async () => {
		await secretsFile("GH_TOKEN=beside")
		await secretsFile("GH_TOKEN=variable", join(directory, "variable.env"))
		await secretsFile("GH_TOKEN=option", join(directory, "option.env"))
		const variables = { COMFYUME_SECRETS: "variable.env" }
		expect((await load()).find("GH_TOKEN")?.reveal()).toBe("beside")
		expect((await load({ variables })).find("GH_TOKEN")?.reveal()).toBe("variable")
		expect((await load({ variables, file: "option.env" })).find("GH_TOKEN")?.reveal()).toBe("option")
	})

	test.each([0o644, 0o640, 0o620, 0o602, 0o660])("in a file of mode %o are refused", async (mode) => {
		await secretsFile("GH_TOKEN=very-secret")
		await chmod(file(), mode)
		await expect(load()).rejects.toMatchObject({ exitCode: 2, hint: `chmod 600 ${file()}` })
	})

	test("in a file of somebody else are refused", async () => {
		await secretsFile("GH_TOKEN=very-secret")
		const userId = (process.getuid?.() ?? 0) + 1
		await expect(load({ userId })).rejects.toMatchObject({
			exitCode: 2,
			hint: `chown ${userId} ${file()} && chmod 600 ${file()}`,
		})
	})

	test("in a named file that is not there are refused", async () => {
		await expect(load({ file: "nowhere.env" })).rejects.toMatchObject({
			exitCode: 2,
			message: expect.stringContaining("nowhere.env"),
		})
	})

	test("in a file that can't be read are refused without showing a value", async () => {
		await secretsFile("GH_TOKEN='very-secret\n")
		const refused = await load().catch((error: unknown) => error)
		expect(refused).toMatchObject({ exitCode: 2, message: expect.stringContaining(`${file()}:1`) })
		expect(inspect(refused, { depth: 9 })).not.toContain("very-secret")
	})

	test("that are missing are asked for by name, with all places that were looked at", async () => {
		const secrets = await load({ readKeyring: keyring })
		expect(() => secrets.need("R2_ACCESS_KEY_ID", "reading the bucket cache")).toThrow(
			expect.objectContaining({
				message: `R2_ACCESS_KEY_ID is missing, needed for reading the bucket cache; looked in the environment variable, ${file()} (no such file), ${directory}/etc/secrets.env (no such file), the kernel keyring`,
				hint: `add R2_ACCESS_KEY_ID=… to ${file()} (chmod 600), or export R2_ACCESS_KEY_ID`,
				exitCode: 2,
			}),
		)
	})

	test("that are empty count as missing", async () => {
		await secretsFile("GH_TOKEN=")
		const secrets = await load({ variables: { R2_ACCESS_KEY_ID: "" } })
		expect(secrets.find("GH_TOKEN")).toBeUndefined()
		expect(secrets.find("R2_ACCESS_KEY_ID")).toBeUndefined()
	})

	test("with a misspelt name are pointed out", async () => {
		await secretsFile("GH_TOKN=very-secret\nSOMETHING_ELSE=x")
		expect((await load()).notes).toEqual([
			`${file()}:1: GH_TOKN is not a secret comfyume knows (did you mean GH_TOKEN?)`,
		])
	})

	test("are all there for redaction, also those with names of others", async () => {
		await secretsFile("GH_TOKEN=one\nUNKNOWN_NAME=two")
		expect((await load()).all().map((secret) => secret.reveal())).toEqual(["one", "two"])
	})

	test("travel to a session and arrive whole, without ever being shown", async () => {
		await secretsFile("GH_TOKEN='sp€cial \"$x\" #1'\nR2_ACCESS_KEY_ID=abc")
		const sent = (await load()).toPayload(["R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY", "GH_TOKEN"])
		expect(`${sent}${inspect(sent)}${JSON.stringify(sent)}`).not.toContain("abc")
		const arrived = secretsFromPayload(new Secret(sent.reveal()))
		expect(arrived.find("GH_TOKEN")?.reveal()).toBe('sp€cial "$x" #1')
		expect(arrived.find("R2_ACCESS_KEY_ID")?.reveal()).toBe("abc")
		expect(arrived.origin("GH_TOKEN")).toBe("the session")
		expect(() => arrived.need("TAILSCALE_API_KEY", "the twin check")).toThrow(/looked in the session/)
	})

	test.each([
		'{"version":1,"secrets":{"GH_TOKEN":"very-secret"}',
		'{"version":2,"secrets":{"GH_TOKEN":"very-secret"}}',
		"very-secret",
	])("that arrive damaged are refused without being shown", (text) => {
		let refused: unknown
		try {
			secretsFromPayload(new Secret(text))
		} catch (error) {
			refused = error
		}
		expect(refused).toMatchObject({ message: "the session's secrets can't be read" })
		expect(inspect(refused, { depth: 9 })).not.toContain("very-secret")
	})
})

test("a file that root owns is root's", async () => {
	// The owner is compared as the file system has it, not as the name says.
	const path = join(directory, "own.env")
	await writeFile(path, "GH_TOKEN=x", { mode: 0o600 })
	const userId = process.getuid?.() ?? 0
	if (userId === 0) await chown(path, 1000, 1000)
	const wanted = userId === 0 ? 1000 : userId
	const secrets = await loadSecrets({ file: path, variables: {}, workingDirectory: "/", userId: wanted })
	expect(secrets.find("GH_TOKEN")?.reveal()).toBe("x")
})
