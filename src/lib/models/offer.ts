// What a source offers for a model, and what its bytes must come to before they may take the model's place.
import type { ByteSource } from "../storage/byte-source.ts"
import type { ObjectStore } from "../storage/object-store.ts"
import type { ModelEntry } from "./manifest.ts"

/** A model's bytes in one place, and what that place says of them. */
export type Offer = {
	bytes: ByteSource
	/** A sha256 that the source states. Held against the bytes; not a proof that they are the right model. */
	claim?: { digest: string; by: string }
}

/** A place that may hold models. */
export type ModelSource = {
	/** In the operator's words: `share`, `r2`, `huggingface.co`. */
	name: string
	/**
	 * Undefined when it has no such model.
	 * @throws {OperatorError} when the place can't be used
	 */
	find(entry: ModelEntry): Promise<Offer | undefined>
}

/** A store whose keys are the models' paths: the vault, or another directory of models. */
export function storeSource(store: ObjectStore): ModelSource {
	return {
		name: store.name,
		async find({ path }) {
			const head = await store.head(path)
			if (head === undefined) return undefined
			const { claimedDigest } = head
			return {
				bytes: store.byteSource(head),
				...(claimedDigest === undefined ? {} : { claim: { digest: claimedDigest, by: store.name } }),
			}
		},
	}
}

export type Expectation = {
	digest?: string
	blocks?: readonly string[]
	/** What the bytes will have been held against, in the operator's words. */
	proof: string
}

/** True when the manifest's figures were measured or otherwise verified: only those overrule what a source states. */
export const isTrusted = ({ figures }: ModelEntry): boolean => figures?.verified === true

/**
 * Whose figures decide: the manifest's where they were verified, else the source's own claim, else nobody's.
 * @returns `refused` when it is certain, without reading a byte, that this is another file
 */
export function expectationOf(
	entry: ModelEntry,
	{ bytes, claim }: Offer,
): { expectation: Expectation } | { refused: string } {
	if (isTrusted(entry)) {
		const { sizeBytes, sha256, blocks } = entry
		if (sizeBytes !== undefined && sizeBytes !== bytes.sizeBytes)
			return { refused: `it has ${bytes.sizeBytes} bytes there, not ${sizeBytes}` }
		if (sha256 !== undefined && claim !== undefined && claim.digest !== sha256)
			return { refused: `${claim.by} says its sha256 is ${claim.digest}, not ${sha256}` }
		if (sha256 !== undefined)
			return {
				expectation: {
					digest: sha256,
					proof: "its sha256 is the manifest's",
					...(blocks === undefined ? {} : { blocks: blocks.sha256 }),
				},
			}
	}
	if (claim !== undefined)
		return { expectation: { digest: claim.digest, proof: `its sha256 is as claimed by ${claim.by}` } }
	return { expectation: { proof: "not proven: no digest is known" } }
}

/** What the manifest's figures say that never were verified and that differ from what came; undefined when nothing does. */
export function unverifiedDifference(
	entry: ModelEntry,
	came: { sizeBytes: number; digest: string },
): string | undefined {
	const { sizeBytes, sha256, figures } = entry
	if (figures === undefined || figures.verified) return undefined
	if (sizeBytes !== undefined && sizeBytes !== came.sizeBytes)
		return `it has ${came.sizeBytes} bytes, and ${figures.from} says ${sizeBytes}`
	if (sha256 !== undefined && sha256 !== came.digest)
		return `its sha256 is ${came.digest}, and ${figures.from} says ${sha256}`
	return undefined
}
