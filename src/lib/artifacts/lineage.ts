// Which snapshot the files on a host descend from. Both a backup (they are in it) and a restore (they came out of it)
// note it. It protects newer work: a server that has been in use since its restore isn't thrown back by running
// restore again. It never makes anything count as restored: files that miss their floor are needed, noted or not.
import { z } from "zod"
import type { LocalHost } from "../host/local.ts"
import { parseSnapshotId, type SnapshotName } from "./snapshot.ts"

const stateDirectory = "/var/lib/comfyume"

const fileOf = (artifact: string) => `${stateDirectory}/lineage/${artifact}`

const lineageSchema = z.strictObject({ snapshot: z.string(), treeDigest: z.string() })

export type Lineage = {
	snapshot: SnapshotName
	/** Of the files on the host at that moment. */
	treeDigest: string
}

/** What an artifact's files descend from; undefined when nothing is noted, or nothing that can be read. */
export async function readLineage(host: LocalHost, artifact: string): Promise<Lineage | undefined> {
	const content = await host.read(fileOf(artifact))
	if (content === undefined) return undefined
	try {
		const { snapshot, treeDigest } = lineageSchema.parse(JSON.parse(content.toString("utf8")))
		const name = parseSnapshotId(snapshot)
		return name === undefined ? undefined : { snapshot: name, treeDigest }
	} catch {
		return undefined
	}
}

/** Notes it. Called only after the files were verified. */
export async function writeLineage(
	host: LocalHost,
	artifact: string,
	lineage: { snapshot: string; treeDigest: string },
): Promise<void> {
	await host.files.makeDirectory(`${stateDirectory}/lineage`, 0o755)
	await host.write(fileOf(artifact), `${JSON.stringify(lineage)}\n`, { mode: 0o644 })
}
