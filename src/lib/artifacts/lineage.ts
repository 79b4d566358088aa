// Which snapshot the files on a host descend from. Both a backup (they are in it) and a restore (they came out of it)
// note it. It protects newer work: a server that has been in use since its restore isn't thrown back by running
// restore again. It never makes anything count as restored: files that miss their floor are needed, noted or not.
import type { LocalHost } from "../host/local.ts"
import { parseSnapshotId, type SnapshotName } from "./snapshot.ts"

export const stateDirectory = "/var/lib/comfyume"

const fileOf = (artifact: string) => `${stateDirectory}/lineage/${artifact}`

/** The snapshot that an artifact's files descend from; undefined when none is noted. */
export async function readLineage(host: LocalHost, artifact: string): Promise<SnapshotName | undefined> {
	const content = await host.read(fileOf(artifact))
	return content === undefined ? undefined : parseSnapshotId(content.toString("utf8").trim())
}

/** Notes it. Called only after the files were verified. */
export async function writeLineage(host: LocalHost, artifact: string, id: string): Promise<void> {
	await host.files.makeDirectory(`${stateDirectory}/lineage`, 0o755)
	await host.write(fileOf(artifact), `${id}\n`, { mode: 0o644 })
}
