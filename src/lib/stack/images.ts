// The images that are built here: from which files, on which base. An image carries the digest of all it was built from,
// so that a check can tell whether it is the one that these files make.
import { createHash } from "node:crypto"
import { readdir, readFile } from "node:fs/promises"
import { join, relative } from "node:path"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import type { Stack } from "./description.ts"

export const imageNames = ["frontend", "queueManager", "authGate", "admin", "worker", "workerAgent"] as const
export type ImageName = (typeof imageNames)[number]

const gibibyte = 1024 ** 3

/** Everything an image follows from. Paths are relative to comfyume's own directory: a clone or a release on a host. */
export type ImageBuild = {
	/** As the stack's description calls it. */
	name: ImageName
	title: string
	/** What it is tagged with. */
	image: string
	dockerfile: string
	/** What the Dockerfile copies from. */
	context: string
	/** Files and directories of the context that come into the image; the Dockerfile itself besides. */
	inputs: readonly string[]
	/** Build arguments. Never secrets: they stand in the image. */
	arguments: Readonly<Record<string, string>>
	/** Only where there is a GPU. */
	onlyWithGpu: boolean
	/** What Docker needs to have free for it, by the platform's own figures. */
	roomBytes: number
}

/** Of `docker image inspect`: what an image was built from, and of which revision of the platform. */
export const imageLabels = {
	inputs: "comfyume.inputs",
	revision: "org.opencontainers.image.revision",
} as const

/** Every image that is built here. Pure. */
export function imageBuilds({
	images,
	configuration,
}: Pick<Stack, "images" | "configuration">): ImageBuild[] {
	const { node, python, nginx } = configuration.images
	const bundle = (name: ImageName, title: string, directory: string, dockerfile: string) => ({
		name,
		title,
		image: images[name],
		dockerfile,
		context: `dist/${directory}`,
		inputs: ["."],
		arguments: { NODE_IMAGE: node },
		onlyWithGpu: name === "workerAgent",
		roomBytes: 0.5 * gibibyte,
	})
	const template = (
		name: "admin" | "frontend" | "worker",
		title: string,
		base: Readonly<Record<string, string>>,
	) => ({
		name,
		title,
		image: images[name],
		dockerfile: `templates/stack/${name}/Dockerfile`,
		context: ".",
		inputs: [`templates/stack/${name}`],
		arguments: base,
		onlyWithGpu: name === "worker",
		// A frontend is 4 GB, a worker's archive up to 5.9 GB compressed; the admin's page is nginx and a few files.
		roomBytes: { admin: 0.5, frontend: 5, worker: 15 }[name] * gibibyte,
	})
	const comfyui = (name: "frontend" | "worker") => ({
		PYTHON_IMAGE: python,
		COMFYUI_VERSION: images[name].split(":")[1] ?? "",
	})
	return [
		bundle(
			"queueManager",
			"Image of the queue manager",
			"queue-manager",
			"templates/queue-manager/Dockerfile",
		),
		bundle("authGate", "Image of the auth gate", "auth-gate", "templates/stack/auth-gate/Dockerfile"),
		template("admin", "Image of the admin's page", { NGINX_IMAGE: nginx }),
		template("frontend", "Image of the frontends", comfyui("frontend")),
		template("worker", "Image of the GPU worker", comfyui("worker")),
		bundle("workerAgent", "Image of the worker agent", "worker-agent", "templates/worker-agent/Dockerfile"),
	]
}

/**
 * The digest of everything an image follows from: names and contents of its files, its Dockerfile, base and
 * arguments. The revision isn't part of it: a commit that changes nothing of an image asks for no other image.
 * @param root comfyume's own directory
 * @throws {OperatorError} (2) when files are missing, as the services' bundles are in a clone that was not built
 */
export async function digestOfInputs(root: string, build: ImageBuild): Promise<string> {
	const hash = createHash("sha256")
	hash.update(JSON.stringify([build.image, build.arguments]))
	const context = join(root, build.context)
	const files = [join(root, build.dockerfile)]
	for (const input of build.inputs) files.push(...(await filesIn(join(context, input), build)))
	for (const file of [...new Set(files)].sort()) {
		const content = await readFile(file).catch((error: unknown) => {
			throw missing(error, file, build)
		})
		const of = createHash("sha256").update(content).digest("hex")
		// Not its permissions: a clone and a release have others, and the Dockerfiles set them.
		hash.update(`${of} ${relative(root, file)}\n`)
	}
	return hash.digest("hex")
}

async function filesIn(path: string, build: ImageBuild): Promise<string[]> {
	try {
		const entries = await readdir(path, { recursive: true, withFileTypes: true })
		const ours = entries.filter(({ name, parentPath }) => !`${parentPath}/${name}`.includes("/__pycache__"))
		return ours.filter((entry) => entry.isFile()).map(({ parentPath, name }) => join(parentPath, name))
	} catch (error) {
		throw missing(error, path, build)
	}
}

function missing(error: unknown, path: string, { context, title }: ImageBuild): unknown {
	if (codeOf(error) !== "ENOENT") return systemError(error, `reading ${path}`)
	return new OperatorError(`${title}: ${path} is not there`, {
		exitCode: exitCodes.usage,
		hint: context.startsWith("dist/") ? "npm run build" : "put comfyume there as a whole",
		cause: error,
	})
}

/**
 * The words of `docker` that build it.
 * @param revision of the platform's code, for the label
 */
export function buildWords(root: string, build: ImageBuild, inputs: string, revision: string): string[] {
	const each = (option: string, values: Readonly<Record<string, string>>) =>
		Object.entries(values).flatMap(([name, value]) => [option, `${name}=${value}`])
	return [
		...["buildx", "build", "--load", "--progress", "plain"],
		...["--tag", build.image],
		...each("--label", { [imageLabels.inputs]: inputs, [imageLabels.revision]: revision }),
		...each("--build-arg", build.arguments),
		...["--file", join(root, build.dockerfile)],
		join(root, build.context),
	]
}
