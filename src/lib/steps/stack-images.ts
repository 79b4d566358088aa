// The stack's images as steps: an image is there when it carries the digest of the files it is to be built from.
import { z } from "zod"
import { command, withOptions } from "../host/command.ts"
import { requireSpace, spaceFactor } from "../host/disk.ts"
import type { Host } from "../host/host.ts"
import { type Finding, needed, type Report, type Step, satisfied } from "../plan/step.ts"
import type { Stack } from "../stack/description.ts"
import { dockerFailure, imagePath } from "../stack/docker.ts"
import { dockerApi } from "../stack/docker-api.ts"
import { buildWords, digestOfInputs, type ImageBuild, imageBuilds, imageLabels } from "../stack/images.ts"
import type { StepContext } from "./context.ts"

export type ImageOptions = {
	/** comfyume's own directory, with `templates` and the services' bundles in `dist`. */
	packageRoot: string
	/** Of the platform's code: what the label says. */
	revision: string
	/** The GPU worker's and its agent's too. */
	gpu?: boolean
	/** One that is there stays, whatever it was built from: for a restore, which brings back what ran. */
	onlyMissing?: boolean
}

const inspectTimeoutMs = 20_000
/** ComfyUI's images fetch gigabytes. */
const buildTimeoutMs = 60 * 60_000

/** A step per image, by ids as `image-frontend`. None needs another; the containers that run them need these. */
export function imageSteps(
	{ host }: Pick<StepContext, "host">,
	stack: Pick<Stack, "images" | "configuration" | "role">,
	options: ImageOptions,
): Step[] {
	return imageBuilds(stack)
		.filter(({ onlyWithGpu }) =>
			// A GPU host has these alone, an app server only if it has a GPU too.
			stack.role === "worker" ? onlyWithGpu : !onlyWithGpu || options.gpu === true,
		)
		.map((build) => imageStep(host, build, options))
}

/** The step's id for an image of the description. */
export const imageStepId = (name: keyof Stack["images"]): string =>
	`image-${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`

function imageStep(
	host: StepContext["host"],
	build: ImageBuild,
	{ packageRoot, revision, onlyMissing = false }: ImageOptions,
): Step {
	return {
		id: imageStepId(build.name),
		title: build.title,
		async check(): Promise<Finding> {
			const inputs = await digestOfInputs(packageRoot, build)
			const labels = await labelsOf(host, build.image)
			const because = whyNot(build.image, labels, inputs)
			if (onlyMissing && labels !== undefined && because !== undefined)
				return satisfied(`${because}; comfyume start --build makes it anew`)
			return because === undefined
				? satisfied(`${build.image}, built from ${inputs.slice(0, 12)}`)
				: needed(because)
		},
		async apply(report: Report): Promise<void> {
			const inputs = await digestOfInputs(packageRoot, build)
			report.note(`building ${build.image}`)
			await requireImageRoom(host, build.roomBytes, build.image)
			const words = buildWords(packageRoot, build, inputs, revision)
			await host.execute(
				withOptions(command("docker", ...words), {
					timeoutMs: buildTimeoutMs,
					environment: { DOCKER_BUILDKIT: "1" },
				}),
			)
		},
	}
}

/** Where Docker keeps its images; undefined where there is no Docker, or it gives no answer. */
export async function dockerRoot(host: Host): Promise<string | undefined> {
	const words = ["info", "--format", "{{.DockerRootDir}}"]
	const asked = withOptions(command("docker", ...words), { timeoutMs: inspectTimeoutMs })
	const said = await host.capture(asked).catch(() => undefined)
	const path = said?.stdout.trim() ?? ""
	return path.startsWith("/") ? path : undefined
}

/**
 * Docker stops in the middle of a full disk, and what it has written by then stays.
 * @throws {OperatorError} (7) when there isn't room
 */
export async function requireImageRoom(host: Host, bytes: number, image: string): Promise<void> {
	const root = await dockerRoot(host)
	// A Docker on another machine has its disk there.
	if (root === undefined || !(await host.test(command("test", "-d", root)))) return
	await requireSpace(root, { bytes: Math.ceil(bytes * spaceFactor), shown: root, forWhat: image })
}

function whyNot(
	image: string,
	labels: Readonly<Record<string, string>> | undefined,
	inputs: string,
): string | undefined {
	if (labels === undefined) return `${image} is not there`
	const found = labels[imageLabels.inputs]
	if (found === undefined) return `${image} doesn't say what it was built from`
	if (found !== inputs)
		return `${image} was built from ${found.slice(0, 12)}, these are ${inputs.slice(0, 12)}`
	return undefined
}

const labelsSchema = z.record(z.string(), z.string()).nullable()
const inspectedSchema = z.object({ Config: z.object({ Labels: labelsSchema.nullish() }).nullish() })

/** An image's labels; undefined when there is none of this name. */
async function labelsOf(
	host: StepContext["host"],
	image: string,
): Promise<Readonly<Record<string, string>> | undefined> {
	const api = await dockerApi(host)
	if (api !== undefined) {
		const text = await api(imagePath(image)).catch((error: unknown) => {
			throw dockerFailure(error, host.name)
		})
		return text === undefined ? undefined : (inspectedSchema.parse(JSON.parse(text)).Config?.Labels ?? {})
	}
	const words = ["image", "inspect", "--format", "{{json .Config.Labels}}", image]
	const asked = withOptions(command("docker", ...words), { timeoutMs: inspectTimeoutMs })
	const { exitCode, stdout } = await host.capture(asked, { allowedExitCodes: [1] })
	// 1 is also "no answer": then the list of images says so.
	if (exitCode === 0) return labelsSchema.parse(JSON.parse(stdout)) ?? {}
	await host.capture(withOptions(command("docker", "images", "--quiet"), { timeoutMs: inspectTimeoutMs }))
	return undefined
}
