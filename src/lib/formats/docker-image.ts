// Reads what `docker save` writes of one image: that everything it names is there, byte for byte. Two layouts: that of
// OCI, which Docker writes since 25 (`blobs/sha256/<digest>`), and the older one (`<digest>.json`, `<id>/layer.tar`).
// `manifest.json`, which `docker load` goes by, is in both.
import { posix } from "node:path"
import { z } from "zod"
import { readTar, type TarMember } from "./tar.ts"

/** The bytes are not an archive of this one image. The message says why. */
export class DockerImageError extends Error {
	override name = "DockerImageError"
}

export type DockerImage = {
	/**
	 * `sha256:…`, each of which proves the whole content: what an engine calls the image. The digest of its
	 * configuration, in Docker's own store; that of a manifest, in containerd's.
	 */
	ids: readonly string[]
}

const digestName = /^sha256:([0-9a-f]{64})$/
const digestSchema = z.string().regex(digestName)
const savedSchema = z.array(
	z.object({
		Config: z.string(),
		RepoTags: z.array(z.string()).nullable(),
		Layers: z.array(z.string()).min(1),
	}),
)
const configurationSchema = z.object({ rootfs: z.object({ diff_ids: z.array(digestSchema) }) })
const indexSchema = z.object({ manifests: z.array(z.object({ digest: digestSchema })) })
const manifestSchema = z.object({
	config: z.object({ digest: digestSchema }),
	layers: z.array(z.object({ digest: digestSchema })),
})

// JSON of an image is a few KiB. Layers that are as small are kept too: which is which is known at the end only.
const largestJsonBytes = 1024 * 1024
const mostKeptBytes = 64 * 1024 * 1024

/**
 * Reads a whole archive and judges it. Nothing is written.
 * @param source the uncompressed archive
 * @param reference the one name that loading it may give, as in `comfyume-frontend:v0.11.0`
 * @throws {DockerImageError} when it isn't that image, or not whole
 * @throws {TarError} when it isn't a whole archive
 */
export async function readDockerImage(
	source: AsyncIterable<Uint8Array>,
	reference: string,
): Promise<DockerImage> {
	const members = await readMembers(source)
	const [saved, ...others] = json(members, "manifest.json", savedSchema)
	if (saved === undefined || others.length > 0)
		throw new DockerImageError(`manifest.json names ${others.length + (saved ? 1 : 0)} images, and not one`)
	const names = saved.RepoTags ?? []
	if (names.length !== 1 || names.some((name) => familiar(name) !== familiar(reference)))
		throw new DockerImageError(`it is the image ${names.join(", ") || "without a name"}, not ${reference}`)
	const configuration = find(members, saved.Config)
	if (!saved.Config.includes(configuration.digest))
		throw new DockerImageError(`${saved.Config} doesn't hold what its name says`)
	const { diff_ids: diffIds } = json(members, saved.Config, configurationSchema).rootfs
	if (diffIds.length !== saved.Layers.length)
		throw new DockerImageError(
			`it has ${saved.Layers.length} layers, its configuration says ${diffIds.length}`,
		)
	const layers = saved.Layers.map((path) => ({ path, digest: find(members, path).digest }))
	const wrong = layers.find(({ digest }, index) => `sha256:${digest}` !== diffIds[index])
	const ids = [
		...(wrong === undefined ? [`sha256:${configuration.digest}`] : []),
		...manifestsOf(members, configuration.digest, layers),
	]
	if (ids.length === 0)
		throw new DockerImageError(`the layer ${wrong?.path} is not the one that its configuration names`)
	return { ids }
}

type File = { digest: string; content?: Buffer }
type Members = ReadonlyMap<string, File | { link: string }>

async function readMembers(source: AsyncIterable<Uint8Array>): Promise<Members> {
	const members = new Map<string, File | { link: string }>()
	let keptBytes = 0
	const keep = (_: string, sizeBytes: number) => {
		if (sizeBytes > largestJsonBytes) return false
		keptBytes += sizeBytes
		if (keptBytes > mostKeptBytes) throw new DockerImageError("it has more small members than an image has")
		return true
	}
	for await (const member of readTar(source, { keep })) {
		const { path, type } = member
		if (path !== posix.normalize(path) || path.startsWith("/") || path.startsWith(".."))
			throw new DockerImageError(`member ${JSON.stringify(path)} has a name that is not plain`)
		if (type === "directory") continue
		if (members.has(path)) throw new DockerImageError(`member ${path} is there twice`)
		members.set(path, judged(member))
	}
	return members
}

function judged({ path, type, digest, content, target }: TarMember): File | { link: string } {
	// The older layout has links from a layer to an equal one.
	if (type === "symlink") return { link: posix.join(posix.dirname(path), target) }
	if (digest === undefined) throw new DockerImageError(`member ${path} is a ${type}`)
	const blob = /^blobs\/sha256\/(.*)$/.exec(path)?.[1]
	if (blob !== undefined && blob !== digest)
		throw new DockerImageError(`${path} doesn't hold what its name says`)
	return { digest, ...(content === undefined ? {} : { content }) }
}

function find(members: Members, path: string): File {
	const member = members.get(path)
	const file = member !== undefined && "link" in member ? members.get(member.link) : member
	if (file === undefined || "link" in file) throw new DockerImageError(`${path} is named, and not there`)
	return file
}

function json<T>(members: Members, path: string, schema: z.ZodType<T>): T {
	const parsed = parse(find(members, path), schema)
	if (parsed === undefined) throw new DockerImageError(`${path} is not what it should be`)
	return parsed
}

function parse<T>({ content }: File, schema: z.ZodType<T>): T | undefined {
	try {
		return schema.parse(JSON.parse(content?.toString("utf8") ?? ""))
	} catch {
		return undefined
	}
}

/** Manifests and what lists them, as far as they lead to exactly this configuration and these layers. */
function manifestsOf(
	members: Members,
	configuration: string,
	layers: readonly { digest: string }[],
): string[] {
	const wanted = [configuration, ...layers.map(({ digest }) => digest)].map((digest) => `sha256:${digest}`)
	const below = (id: string, depth: number): string[] => {
		const blob = members.get(`blobs/sha256/${id.slice("sha256:".length)}`)
		// Of an image for several machines only this one's part was saved.
		if (blob === undefined || "link" in blob || depth > 3) return []
		const manifest = parse(blob, manifestSchema)
		if (manifest !== undefined) {
			const said = [manifest.config.digest, ...manifest.layers.map(({ digest }) => digest)]
			return said.length === wanted.length && said.every((digest, at) => digest === wanted[at]) ? [id] : []
		}
		const found = (parse(blob, indexSchema)?.manifests ?? []).flatMap(({ digest }) =>
			below(digest, depth + 1),
		)
		return found.length === 0 ? [] : [id, ...found]
	}
	const index = members.get("index.json")
	if (index === undefined || "link" in index) return []
	return (parse(index, indexSchema)?.manifests ?? []).flatMap(({ digest }) => below(digest, 0))
}

/** The name as Docker shows it: `docker.io/library/redis` is `redis:latest`. */
function familiar(name: string): string {
	const short = name.replace(/^docker\.io\//, "").replace(/^library\//, "")
	return /:[^/]+$/.test(short) ? short : `${short}:latest`
}
