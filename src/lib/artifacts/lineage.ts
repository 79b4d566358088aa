// Which snapshot the files on a host descend from. Both a backup (they are in it) and a restore (they came out of it)
// note it. It protects newer work: a server that has been in use since its restore isn't thrown back by running
// restore again. It never makes anything count as restored: files that miss their floor are needed, noted or not.
import { z } from "zod"
import type { LocalHost } from "../host/local.ts"
import { type ArchiveSidecar, parseSnapshotId, type SnapshotName } from "./snapshot.ts"

const stateDirectory = "/var/lib/comfyume"

const fileOf = (artifact: string) => `${stateDirectory}/lineage/${artifact}`

const lineageSchema = z.strictObject({
	environment: z.string(),
	host: z.string(),
	snapshot: z.string(),
	treeDigest: z.string(),
	holds: z.string().optional(),
	passedOver: z.string().optional(),
})

/** Whose files they are. A machine that served another environment or host before has no lineage here. */
export type Owner = { environment: string; host: string }

export type Lineage = {
	snapshot: SnapshotName
	/** Of the files on the host at that moment. */
	treeDigest: string
	/** The tree digest of what the snapshot holds: the sidecar of an encrypted one doesn't say it. */
	holds?: string
	/** A newer snapshot that was bad everywhere when this one was restored: it must not win later without being asked for. */
	passedOver?: SnapshotName
}

/** What an artifact's files descend from; undefined when nothing is noted, or nothing that can be read. */
export async function readLineage(
	host: LocalHost,
	artifact: string,
	owner: Owner,
): Promise<Lineage | undefined> {
	const content = await host.read(fileOf(artifact))
	if (content === undefined) return undefined
	try {
		const noted = lineageSchema.parse(JSON.parse(content.toString("utf8")))
		if (noted.environment !== owner.environment || noted.host !== owner.host) return undefined
		// The backups of the older scripts have names of another kind.
		const name = parseSnapshotId(noted.snapshot) ?? olderName(noted.snapshot)
		const passedOver = parseSnapshotId(noted.passedOver ?? "")
		return {
			snapshot: name,
			treeDigest: noted.treeDigest,
			...(noted.holds === undefined ? {} : { holds: noted.holds }),
			...(passedOver === undefined ? {} : { passedOver }),
		}
	} catch {
		return undefined
	}
}

/** Older than anything that comfyume has taken. */
const olderName = (id: string): SnapshotName => ({ id, takenAt: new Date(0), shortDigest: "" })

/** Notes it, for root alone: the digest of a small secret file lets guesses be proven. Called only after the files were verified. */
export async function writeLineage(
	host: LocalHost,
	artifact: string,
	lineage: Owner & { snapshot: string; treeDigest: string; holds: string; passedOver?: string },
): Promise<void> {
	await host.files.makeDirectory(`${stateDirectory}/lineage`, 0o755)
	await host.write(fileOf(artifact), `${JSON.stringify(lineage)}\n`, { mode: 0o600 })
}

/** The tree digest of a snapshot: by its sidecar, or by what this host has noted of it; undefined when neither knows. */
export const treeDigestOf = (
	{ id, sidecar }: { id: string; sidecar: ArchiveSidecar },
	lineage: Lineage | undefined,
): string | undefined => sidecar.treeDigest ?? (lineage?.snapshot.id === id ? lineage.holds : undefined)
