// Docker's images as things to be saved and loaded.
import { z } from "zod"
import { command, withOptions } from "../host/command.ts"
import type { Host } from "../host/host.ts"
import { dockerFailure, imagePath } from "./docker.ts"
import { dockerApi } from "./docker-api.ts"

/** `id`: as in `sha256:…`. `sizeBytes`: about what `docker save` gives. */
export type FoundImage = { id: string; sizeBytes: number }

const askTimeoutMs = 20_000
const inspectedSchema = z.object({ Id: z.string(), Size: z.number() })
const factsOf = ({ Id, Size }: z.infer<typeof inspectedSchema>): FoundImage => ({ id: Id, sizeBytes: Size })

/**
 * The images of a host's Docker. All but `isThere` throw an OperatorError: (4) when Docker gives no answer, with how to
 * start it.
 */
export function imageStore(host: Host) {
	const failing = (error: unknown): never => {
		throw dockerFailure(error, host.name)
	}
	const ask = (words: readonly string[], allowedExitCodes: readonly number[] = []) =>
		host
			.capture(withOptions(command("docker", ...words), { timeoutMs: askTimeoutMs }), { allowedExitCodes })
			.catch(failing)
	const isThere = () => host.test(command("docker", "--version"))
	return {
		/** Whether there is Docker at all. */
		isThere,
		/** The image of this name; undefined when there is none, as where there is no Docker. */
		async find(image: string): Promise<FoundImage | undefined> {
			const api = await dockerApi(host)
			if (api !== undefined) {
				const text = await api(imagePath(image)).catch(failing)
				return text === undefined ? undefined : factsOf(inspectedSchema.parse(JSON.parse(text)))
			}
			const asked = await ask(["image", "inspect", image], [1]).catch(async (error: unknown) => {
				if (await isThere()) throw error
			})
			if (asked === undefined) return undefined
			const { exitCode, stdout } = asked
			if (exitCode === 0) {
				const [found] = z.array(inspectedSchema).parse(JSON.parse(stdout))
				return found && factsOf(found)
			}
			// 1 is also "no answer": then this says so.
			await ask(["images", "--quiet", image])
			return undefined
		},
		/** Writes one image to a file of the host, as an uncompressed tar archive. */
		async save(image: string, file: string): Promise<void> {
			await host.execute(command("docker", "save", "--output", file, image)).catch(failing)
		},
		/** Takes what `save` wrote. An image that had the name before stays, without a name. */
		async load(file: string): Promise<void> {
			await host.execute(command("docker", "load", "--quiet", "--input", file)).catch(failing)
		},
	}
}
