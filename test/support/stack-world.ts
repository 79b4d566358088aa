// A whole stack on a real Docker Engine: what generate-users writes, images built from a release as on a host, and the
// workshop's door on loopback. ComfyUI alone is a stand-in: there is none to be had here.
import {
	appendFileSync,
	chmodSync,
	mkdirSync,
	mkdtempSync,
	readFileSync,
	rmSync,
	writeFileSync,
} from "node:fs"
import { request as secureRequest } from "node:https"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { readEnvFile } from "../../src/lib/formats/env-file.ts"
import { localHost } from "../../src/lib/host/local.ts"
import { digestOfInputs, type ImageBuild, imageBuilds, imageLabels } from "../../src/lib/stack/images.ts"
import { imageSteps } from "../../src/lib/steps/stack-images.ts"
import { startDocker } from "./docker.ts"
import { ensureBaseImages } from "./docker-base.ts"
import { type Asking, ask, domain, echo, makeCertificate } from "./front-door.ts"
import { type RunOptions, run } from "./run.ts"
import { freePort } from "./sshd.ts"
import { stackFor } from "./stack.ts"

const repository = fileURLToPath(new URL("../..", import.meta.url))
/** What a host has: the release's tree, and no clone. */
export const releaseRoot = join(repository, `dist/release/tree-${process.arch}`)

export type StackWorld = Awaited<ReturnType<typeof openStackWorld>>

export async function openStackWorld({ users = 20 } = {}) {
	const engine = await startDocker()
	const { docker } = engine
	const directory = mkdtempSync(join(tmpdir(), "comfyume-stack-"))
	const path = (...parts: string[]) => join(directory, ...parts)
	try {
		await ensureBaseImages(engine)
		// The containers' users walk through it.
		chmodSync(directory, 0o755)
		for (const name of ["share/models/shared/loras", "outputs", "inputs", "workflows", "acme", "stack"])
			mkdirSync(path(name), { recursive: true })
		chmodSync(path("stack"), 0o700)
		writeFileSync(path("workflows/first.json"), "{}")
		writeFileSync(path("share/models/shared/loras/everyones.safetensors"), "a model")
		await makeCertificate(path("certificates"))
		const ports = { http: await freePort(), https: await freePort() }
		writeFileSync(path("comfyume.yaml"), configurationText(directory, users, ports))

		const comfyume = (...words: string[]) =>
			run(process.execPath, [join(repository, "src/cli.ts"), ...words], {
				workingDirectory: directory,
				environment: { ...engine.environment, HOME: directory, COMFYUME_ENV: "sandbox" },
				allowedExitCodes: "any",
				timeoutMs: 300_000,
			})
		await buildImages(engine)

		const entries = (file: string) => readEnvFile(readFileSync(path("stack", file), "utf8")).entries
		const compose = (...words: (string | RunOptions)[]) =>
			engine.compose("--file", path("stack/compose.yaml"), ...words)
		return {
			...{ engine, docker, directory, path, ports, comfyume, compose, entries },
			/** `name:password` as generate-users made it. */
			as: (name: string) => {
				const found = entries("credentials.env").find(({ value }) => value.startsWith(`${name}:`))
				if (found === undefined) throw new Error(`${name} has no password`)
				return found.value
			},
			ask: (at: string, asking: Asking = {}) => ask(ports.https, at, asking),
			echo: (at: string, headers: Readonly<Record<string, string>>) => echo(ports.https, at, headers),
			/** Sends so many MiB of zeros, and gives the answer. */
			pour: (at: string, as: string, megabytes: number) => pour(ports.https, at, as, megabytes),
			/** Runs a program in a container of the stack. */
			inside: (container: string, ...words: (string | RunOptions)[]) => docker("exec", container, ...words),
			addToEnvironment: (line: string) => appendFileSync(path("stack/.env"), `${line}\n`, { mode: 0o600 }),
			[Symbol.asyncDispose]: async () => {
				await engine[Symbol.asyncDispose]()
				rmSync(directory, { recursive: true, force: true })
			},
		}
	} catch (error) {
		await engine[Symbol.asyncDispose]()
		rmSync(directory, { recursive: true, force: true })
		throw error
	}
}

const configurationText = (
	directory: string,
	users: number,
	ports: { http: number; https: number },
) => `version: 1
environments:
  sandbox:
    domain: ${domain}
    allowStandIns: true
    hosts: [{ name: app-1, role: app, connection: directory, directory: / }]
    git:
      project: { remote: ./project.git, branch: main, path: /project }
      scripts: { remote: ./scripts.git, branch: main, path: /scripts }
    stack:
      directory: ${directory}/stack
      users: ${users}
      network: 10.214.0.0/19
      ports: { http: ${ports.http}, https: ${ports.https} }
      paths:
        models: ${directory}/share/models
        shareOutputs: ${directory}/share/outputs
        outputs: ${directory}/outputs
        inputs: ${directory}/inputs
        workflows: ${directory}/workflows
        certificates: ${directory}/certificates
        acme: ${directory}/acme
`

/** The services' images as a host builds them; in place of ComfyUI's two its stand-in, under their names and labels. */
async function buildImages(engine: Awaited<ReturnType<typeof startDocker>>): Promise<void> {
	const stack = stackFor(1)
	const controller = new AbortController()
	const host = localHost({ name: "app-1", environment: engine.environment, signal: controller.signal })
	const report = { note: () => {} } as unknown as Parameters<
		ReturnType<typeof imageSteps>[number]["apply"]
	>[0]
	const steps = imageSteps({ host }, stack, { packageRoot: releaseRoot, revision: "tests", gpu: true })
	for (const build of imageBuilds(stack)) {
		if (build.name === "frontend" || build.name === "worker") await buildStandIn(engine, build, build.name)
	}
	for (const step of steps) {
		if ((await step.check(report)).state !== "satisfied") await step.apply(report)
		const finding = await step.check(report)
		if (finding.state !== "satisfied") throw new Error(`${step.id}: ${finding.because}`)
	}
}

async function buildStandIn(
	{ docker }: Awaited<ReturnType<typeof startDocker>>,
	build: ImageBuild,
	target: string,
): Promise<void> {
	const inputs = await digestOfInputs(releaseRoot, build)
	await docker(
		...["buildx", "build", "--load", "--progress", "plain", "--tag", build.image, "--target", target],
		...["--label", `${imageLabels.inputs}=${inputs}`],
		...["--file", join(repository, "test/support/stand-ins/comfyui/Dockerfile"), repository],
	)
}

function pour(
	port: number,
	path: string,
	as: string,
	megabytes: number,
): Promise<{ status: number; text: string }> {
	const chunk = Buffer.alloc(1024 * 1024)
	return new Promise((resolve, reject) => {
		const request = secureRequest(
			{
				...{ host: "127.0.0.1", port, path, method: "POST", servername: domain, agent: false },
				rejectUnauthorized: false,
				headers: {
					host: domain,
					authorization: `Basic ${Buffer.from(as).toString("base64")}`,
					"content-length": String(megabytes * chunk.length),
				},
			},
			(response) => {
				let text = ""
				response.setEncoding("utf8").on("data", (said: string) => {
					text += said
				})
				response.on("end", () => resolve({ status: response.statusCode ?? 0, text }))
			},
		)
		request.on("error", reject)
		let left = megabytes
		const more = () => {
			while (left > 0) {
				left--
				if (!request.write(chunk)) return void request.once("drain", more)
			}
			request.end()
		}
		more()
	})
}
