// Some files out of a snapshot: one user's workflow of last Tuesday. The rest of the artifact isn't touched.

import { unpackArchive } from "../artifacts/archive.ts"
import { readIndex } from "../artifacts/assemble.ts"
import type { ArchiveArtifact } from "../artifacts/catalogue.ts"
import {
	acquire,
	findCandidates,
	keyFor,
	newestSidecar,
	requireKey,
	type Verified,
	type Wanted,
} from "../artifacts/chain.ts"
import { isWithin } from "../artifacts/path-pattern.ts"
import { replaceWith } from "../artifacts/replace.ts"
import type { SnapshotName } from "../artifacts/snapshot.ts"
import { treeOfIndex } from "../artifacts/snapshot-index.ts"
import { sourcesOf } from "../artifacts/source.ts"
import { differences, readTree, type Tree, treeOf } from "../artifacts/tree.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { command } from "../host/command.ts"
import { requireSpaceOn, spaceFactor } from "../host/disk.ts"
import { needed, type Report, type Step, satisfied, unknown } from "../plan/step.ts"
import { formatBytes } from "../ui/format.ts"
import { ageSeconds, clearWork, type StepContext, workDirectory } from "./context.ts"

export type RestoreFilesOptions = {
	/** Absolute, or relative to one of the artifact's paths; `*` within a part, `**` over several. */
	patterns: readonly string[]
	at?: Date
	/** A directory on the host that they are put into, and nothing of the host's own is changed. */
	into?: string
}

/**
 * Brings back what the patterns mean, from the newest snapshot (at a time) that proves right. What stood in its place
 * is kept.
 */
export function restoreFiles(
	context: StepContext,
	artifact: ArchiveArtifact,
	{ patterns, at, into }: RestoreFilesOptions,
): Step {
	const { environment, hostConfiguration, host, spoken, now, signal, summary } = context
	const ownership = !host.standIn
	const sources = sourcesOf(context, artifact)
	const wanted: Wanted = {
		environment: environment.name,
		host: hostConfiguration.name,
		spoken,
		allowUnverified: false,
		...(at === undefined ? {} : { at }),
	}
	const roots = artifact.paths
	const meant = patterns.flatMap((pattern) =>
		pattern.startsWith("/") ? [pattern] : roots.map((root) => `${root}/${pattern}`),
	)
	const isWanted = (path: string) => meant.some((pattern) => isWithin(`/${path}`, pattern))
	/** With the directories that they lie in, as far as those are the artifact's. */
	const selected = (tree: Tree): Tree => {
		const files = tree.entries.filter(({ path }) => isWanted(path))
		const leads = (directory: string) => files.some(({ path }) => path.startsWith(`${directory}/`))
		return treeOf(
			tree.entries.filter(
				(entry) => isWanted(entry.path) || (entry.type === "directory" && leads(entry.path)),
			),
		)
	}
	const where = into ?? "/"
	let restored: { id: string; tree: Tree } | undefined

	/** How what stands there differs from the files, each difference as a sentence. */
	const differing = async (tree: Tree): Promise<string[]> => {
		const files = filesOf(tree)
		const paths = files.map(({ path }) => `/${path}`)
		const found = await readTree(host, { paths, exclude: [], exact: true }, where, signal)
		return differences(treeOf(files), treeOf(filesOf(found)), { ownership, limit: 5 })
	}

	return {
		id: artifact.name,
		title: `${patterns.join(", ")} of ${artifact.name}`,
		check: async (report) => {
			if (restored !== undefined) {
				const wrong = await differing(restored.tree)
				if (wrong.length > 0) return needed(`not as in ${restored.id}: ${wrong.join("; ")}`)
				const count = filesOf(restored.tree).length
				return satisfied(`${count === 1 ? "it is" : `all ${count} are`} as in ${restored.id}`)
			}
			const newest = await newestSidecar(await findCandidates(sources, artifact, wanted), artifact, wanted)
			if (newest === undefined)
				return unknown(
					`there is no snapshot of ${artifact.name}${at === undefined ? "" : ` from before ${at.toISOString()}`}`,
				)
			const { sidecar, candidate } = newest
			const { id } = candidate.name
			const copy = candidate.copies.find((each) => each.sidecar !== undefined)
			if (sidecar.kind !== "archive" || sidecar.incremental === undefined || copy === undefined) {
				await requireKey(candidate, keyFor(wanted, artifact, context.ageIdentity))
				return needed(`to be looked for in ${id}`)
			}
			const tree = selected(treeOfIndex((await readIndex(copy, sidecar)).entries))
			requireSome(tree, id)
			list(tree, report)
			if (into === undefined && (await differing(tree)).length === 0) {
				noteSummary(candidate.name, { source: "in place", digest: sidecar.digest, tree })
				return satisfied(`as in ${id}`)
			}
			return needed(`they come from ${id}`)
		},
		apply: async (report) => {
			try {
				const candidates = await findCandidates(sources, artifact, wanted)
				const verified = await acquire(
					{ host, sources, artifact, wanted, candidates, workDirectory, now, signal, report, isWanted },
					context.ageIdentity,
				)
				const { name, source } = verified.copy
				const tree = selected(verified.tree)
				requireSome(tree, name.id)
				const some = only(verified, tree)
				if (into === undefined) {
					const { keptIn } = await replaceWith(host, { ...artifact, replace: "files" }, some, now())
					if (keptIn !== undefined) report.note(`what stood there is kept in ${keptIn}`)
				} else await unpackInto(into, some)
				restored = { id: name.id, tree }
				noteSummary(name, { source: source.name, digest: verified.digest, tree })
			} finally {
				await clearWork(host)
			}
		},
	}

	function noteSummary(
		{ id, takenAt }: SnapshotName,
		{ source, digest, tree }: { source: string; digest: string; tree: Tree },
	): void {
		const count = filesOf(tree).length
		summary.set(artifact.name, {
			artifact: artifact.name,
			source,
			snapshot: id,
			verified: `${count} ${count === 1 ? "file" : "files"}${into === undefined ? "" : ` in ${into}`}`,
			ok: true,
			digest: digest.slice(0, 12),
			ageSeconds: ageSeconds(context, takenAt),
		})
	}

	async function unpackInto(directory: string, verified: Verified): Promise<void> {
		if (await host.test(command("test", "-e", host.path(directory))))
			throw new OperatorError(`${directory} is there already, and nothing is mixed with what lies in it`, {
				exitCode: exitCodes.refusedByGuard,
				hint: `name a directory that doesn't exist: --into ${directory}-2`,
			})
		await host.files.makeDirectory(directory, 0o700)
		await requireSpaceOn(host, directory, {
			bytes: Math.ceil(verified.tree.sizeBytes * spaceFactor),
			files: verified.tree.entries.length,
		})
		for (const { archiveFile, members } of verified.parts)
			await unpackArchive(host, archiveFile, directory, members)
	}

	function requireSome(tree: Tree, id: string): void {
		if (tree.entries.some(({ path }) => isWanted(path))) return
		throw new OperatorError(`${id} of ${artifact.name} holds nothing that is ${meant.join(" or ")}`, {
			hint: `comfyume restore ${spoken} --only ${artifact.name} --files '**' --dry-run   # lists what it holds`,
		})
	}
}

const mostListed = 50

const filesOf = ({ entries }: Pick<Tree, "entries">) => entries.filter(({ type }) => type !== "directory")

function list({ entries }: Tree, report: Report): void {
	const files = filesOf({ entries })
	for (const { path, sizeBytes } of files.slice(0, mostListed))
		report.note(`/${path} (${formatBytes(sizeBytes)})`)
	if (files.length > mostListed) report.note(`and ${files.length - mostListed} more`)
}

/** What was verified, as far as it is wanted: a part that holds none of it isn't unpacked. */
function only(verified: Verified, tree: Tree): Verified {
	const paths = new Set(tree.entries.map(({ path }) => path))
	const [first, ...more] = verified.parts.map(({ archiveFile, members }) => ({
		archiveFile,
		members: (members ?? verified.tree.entries.map(({ path }) => path)).filter((path) => paths.has(path)),
	}))
	return { ...verified, tree, ...(first === undefined ? {} : { parts: [first, ...more] }) }
}
