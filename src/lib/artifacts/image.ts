// Snapshots of container images: what `docker save` gives, compressed, and proven by what is in it.
import { stat } from "node:fs/promises"
import type { Readable } from "node:stream"
import { OperatorError } from "../errors.ts"
import { readDockerImage } from "../formats/docker-image.ts"
import { command } from "../host/command.ts"
import { requireSpaceOn, spaceFactor } from "../host/disk.ts"
import type { LocalHost } from "../host/local.ts"
import type { FoundImage } from "../stack/image-store.ts"
import { archiveError, openArchive } from "./archive.ts"
import type { ImageArtifact } from "./catalogue.ts"
import { type Acquiring, type Fetched, fetchWhole, firstGood, type OneCopy, readOwnSidecar } from "./chain.ts"
import { type ImageSidecar, snapshotName, takingTime } from "./snapshot.ts"
import type { Copy } from "./source.ts"
import { digestFile } from "./tree.ts"

/** An image's archive that has passed every check there is. `ids`: what an engine may call the image. */
export type VerifiedImage = Fetched & { sidecar: ImageSidecar; ids: readonly string[] }

/**
 * Reads a whole archive of an image and holds it against what it should be. Nothing is written.
 * @param archiveFile path on this machine
 * @returns what an engine may call the image, each proving its content
 * @throws {OperatorError} (3) saying what is wrong with it
 */
export async function inspectImage(
	archiveFile: string,
	expected: Pick<ImageSidecar, "image" | "imageId" | "unpackedBytes">,
	signal: AbortSignal,
): Promise<readonly string[]> {
	const { image, imageId, unpackedBytes } = expected
	try {
		const { ids } = await readDockerImage(
			counted(openArchive(archiveFile), { mostBytes: unpackedBytes, signal }),
			image,
		)
		if (ids.includes(imageId)) return ids
		throw new OperatorError(`it holds ${short(ids[0] ?? "")}, its sidecar says ${short(imageId)}`)
	} catch (error) {
		throw archiveError(error)
	}
}

/** Unpacked it must not fill the disk. */
async function* counted(
	source: Readable,
	{ mostBytes, signal }: { mostBytes: number; signal: AbortSignal },
): AsyncGenerator<Uint8Array> {
	let sizeBytes = 0
	for await (const chunk of source) {
		signal.throwIfAborted()
		sizeBytes += (chunk as Buffer).length
		if (sizeBytes > mostBytes) throw new OperatorError(`unpacked it is larger than ${mostBytes} bytes`)
		yield chunk as Buffer
	}
}

/** As people write them. */
export const short = (imageId: string) => imageId.slice("sha256:".length, "sha256:".length + 12)

export type TakingImage = {
	host: LocalHost
	artifact: ImageArtifact
	origin: { comfyume: string; environment: string; host: string }
	/** The newest snapshot before this one, if there is one. */
	predecessor: Date | undefined
	/** As Docker has it now. */
	found: FoundImage
	/** `docker save` to a file of the host. */
	save: (file: string) => Promise<void>
	workDirectory: string
	now: () => Date
	signal: AbortSignal
}

/**
 * Saves an image, compresses it, and reads the archive back layer by layer.
 * @returns the snapshot, and where it lies on the host
 * @throws {OperatorError} (7) without room for it twice; (3) when the archive doesn't hold the image
 */
export async function takeImage(
	work: TakingImage,
): Promise<{ id: string; sidecar: ImageSidecar; archiveFile: string }> {
	const { host, artifact, origin, found, workDirectory, signal } = work
	await host.files.makeDirectory(workDirectory, 0o700)
	// As Docker writes it, and compressed.
	await requireSpaceOn(host, workDirectory, { bytes: Math.ceil(2 * found.sizeBytes * spaceFactor), files: 2 })
	const tarFile = `${workDirectory}/${artifact.name}.tar`
	const archiveFile = `${tarFile}.zst`
	await work.save(host.path(tarFile))
	const { size: unpackedBytes } = await stat(host.path(tarFile))
	// There before zstd opens it: it stays a file that nobody else can read.
	await host.write(archiveFile, "", { mode: 0o600 })
	const files = ["-o", host.path(archiveFile), host.path(tarFile)]
	await host.execute(command("zstd", "--quiet", "--force", "-3", "--threads=2", ...files))
	await host.files.remove(tarFile)
	const facts = await digestFile(host.path(archiveFile), signal)
	const image = { image: artifact.image, imageId: found.id, unpackedBytes }
	await inspectImage(host.path(archiveFile), image, signal)
	const takenAt = takingTime(work.now(), work.predecessor)
	const sidecar: ImageSidecar = {
		version: 1,
		...origin,
		artifact: artifact.name,
		takenAt: takenAt.toISOString(),
		kind: "image",
		...facts,
		unpackedBytes,
		image: artifact.image,
		imageId: found.id,
	}
	return { id: snapshotName(takenAt, facts.digest).id, sidecar, archiveFile }
}

/**
 * Fetches the newest snapshot of an image that proves right, by its digest and by what is in it, nearest first.
 * @throws {OperatorError} as `acquire`
 */
export const acquireImage = (work: Acquiring<ImageArtifact>): Promise<VerifiedImage> =>
	firstGood(work, (copy) => verifyImage(work, copy))

/**
 * Fetches one copy and proves it. No other copy is tried.
 * @returns undefined for a snapshot of another host
 * @throws {OperatorError} saying what is wrong with it
 */
export async function verifyImage(
	work: OneCopy<ImageArtifact>,
	copy: Copy,
): Promise<VerifiedImage | undefined> {
	const sidecar = await readOwnSidecar(work, copy, "image")
	if (sidecar === "foreign") return undefined
	const fetched = await fetchWhole(work, copy, { sidecar, ending: ".tar.zst" })
	const ids = await inspectImage(work.host.path(fetched.storedFile), sidecar, work.signal)
	return { ...fetched, copy, sidecar, ids }
}
