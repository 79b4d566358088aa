// A bad copy of a snapshot is replaced from a good one, where the place allows it.
import { messageOf } from "../errors.ts"
import type { Lease } from "../storage/share-lock.ts"
import { readIndex } from "./assemble.ts"
import type { Acquiring, Fetched } from "./chain.ts"
import { archiveKey, incrementalOf, indexKey, renderSidecar, sidecarKey, stamp } from "./snapshot.ts"
import { alone, type Copy, canHeal, digestOfObject } from "./source.ts"
import { digestFile } from "./tree.ts"

/**
 * Puts the good copy where the bad one stood; the bad one is kept beside it. Failing to heal is said and is no failure
 * of the restore.
 */
export async function heal(work: Acquiring<unknown>, bad: Copy, good: Fetched): Promise<void> {
	const { host, wanted, now, report } = work
	const { store, name } = bad.source
	const { sidecar } = good
	// Not all of it was fetched.
	if (work.isWanted !== undefined) return
	if (sidecar === undefined || bad.olderKey !== undefined || bad.encrypted !== good.copy.encrypted) return
	if (!canHeal(store)) {
		report.note(`${name}: ${bad.name.id} stays damaged: nothing is ever replaced there`)
		return
	}
	const at = now()
	const putRight = async (lease: Lease) => {
		for (const { key, file, facts } of await piecesOf(work, good)) {
			const stands = (await store.head(key)) !== undefined
			if (stands && (await digestOfObject(store, key)) === facts.digest) continue
			await lease.require()
			if (stands) await store.setAside(key, at)
			await store.put(key, host.path(file), { ...facts, ifAbsent: true })
		}
	}
	try {
		const purpose = `healing of ${sidecar.artifact}`
		const again = `comfyume restore ${wanted.spoken} --only ${sidecar.artifact}`
		// A restore doesn't wait for it: the next one can heal.
		await alone(bad.source, { purpose, again, note: report.note, patient: false }, putRight)
		report.note(
			`healed ${name}: ${bad.name.id} from ${good.copy.source.name}; the bad copy is kept as .bad-${stamp(at)}`,
		)
	} catch (error) {
		report.note(`${name}: ${bad.name.id} could not be healed: ${messageOf(error)}`)
	}
}

type Piece = { key: string; file: string; facts: { digest: string; sizeBytes: number } }

/** Everything that makes a snapshot, the sidecar last: with it, it counts. */
async function piecesOf({ host, workDirectory }: Acquiring<unknown>, good: Fetched): Promise<Piece[]> {
	const { sidecar, storedFile, assembled, copy } = good
	if (sidecar === undefined) return []
	const { environment, artifact } = sidecar
	const incremental = incrementalOf(sidecar)
	const { id } = copy.name
	const pieces: Piece[] = []
	for (const [number, { archiveFile }] of (assembled?.parts ?? [{ archiveFile: storedFile }]).entries()) {
		const of = number === 0 ? { id, ...sidecar } : incremental?.archives[number - 1]
		if (of === undefined) continue
		const { digest, sizeBytes } = of
		pieces.push({
			key: archiveKey(sidecar, of.id),
			file: archiveFile,
			facts: { digest, sizeBytes },
		})
	}
	if (sidecar.kind === "archive" && incremental !== undefined) {
		const file = `${workDirectory}/${artifact}.index.zst`
		await host.write(file, (await readIndex(copy, sidecar)).content, { mode: 0o600 })
		pieces.push({ key: indexKey(environment, artifact, id), file, facts: await digestFile(host.path(file)) })
	}
	const file = `${workDirectory}/${artifact}.sidecar.json`
	await host.write(file, renderSidecar(sidecar), { mode: 0o600 })
	const facts = await digestFile(host.path(file))
	return [...pieces, { key: sidecarKey(sidecar, id), file, facts }]
}
