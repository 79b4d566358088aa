// Checkouts in a backup (which commit runs here, and could it be had again?) and in a restore (that commit, again).

import type { GitArtifact } from "../artifacts/catalogue.ts"
import { findCandidates, newestSidecar, type Wanted } from "../artifacts/chain.ts"
import {
	type Checkout,
	type CheckoutState,
	changesOf,
	checkAccess,
	placeCheckout,
	readCheckout,
} from "../artifacts/git.ts"
import {
	type CommitSidecar,
	renderSidecar,
	sidecarKey,
	snapshotName,
	takingTime,
} from "../artifacts/snapshot.ts"
import type { Source } from "../artifacts/source.ts"
import { digestFile } from "../artifacts/tree.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { needed, type Step, satisfied, unknown } from "../plan/step.ts"
import { throwTogether, troubleOf } from "./backup-archive.ts"
import { ageSeconds, clearWork, type StepContext, workDirectory } from "./context.ts"

/** Notes the running commit in every destination, as long as the remote has it and nothing uncommitted lies here. */
export function backupCheckout(
	context: StepContext,
	artifact: GitArtifact,
	destinations: readonly Source[],
): Step {
	const { environment, hostConfiguration, host, spoken, now, signal, summary } = context
	const checkout = checkoutOf(context, artifact)
	const wanted: Wanted = {
		environment: environment.name,
		host: hostConfiguration.name,
		spoken,
		allowUnverified: false,
	}

	const survey = async () => {
		const state = await readCheckout(host, checkout)
		if (state.state !== "present")
			throw new OperatorError(state.state === "absent" ? `${checkout.path} is not there` : state.because, {
				hint: `comfyume restore ${spoken} --only ${artifact.name}`,
			})
		rejectUnrepeatable(state, checkout)
		const standing = await Promise.all(
			destinations.map(async (destination) => {
				if (destination.trouble !== undefined) return { destination, newest: undefined }
				const newest = await newestSidecar(
					await findCandidates([destination], artifact, wanted),
					artifact,
					wanted,
				)
				return { destination, newest: newest?.sidecar.kind === "commit" ? newest.sidecar : undefined }
			}),
		)
		return { commit: state.commit, standing }
	}

	return {
		id: artifact.name,
		title: artifact.name,
		check: async () => {
			const { commit, standing } = await survey()
			const lacking = standing.filter(({ newest }) => newest?.commit !== commit)
			const having = standing.filter(({ newest }) => newest?.commit === commit)
			const noted = having[0]?.newest
			summary.set(artifact.name, {
				artifact: artifact.name,
				source: having.map(({ destination }) => destination.name).join(", ") || "nowhere",
				snapshot: noted === undefined ? "none" : snapshotName(new Date(noted.takenAt), noted.commit).id,
				digest: commit.slice(0, 12),
				verified:
					lacking.length === 0
						? "pushed"
						: `missing: ${lacking.map(({ destination }) => destination.name).join(", ")}`,
				ok: lacking.length === 0,
				...(noted === undefined ? {} : { ageSeconds: ageSeconds(context, new Date(noted.takenAt)) }),
			})
			if (lacking.length === 0 && noted !== undefined)
				return satisfied(
					`${commit.slice(0, 12)} is noted on ${having.map(({ destination }) => destination.name).join(" and ")}`,
				)
			const unusable = lacking.some(({ destination }) => destination.trouble !== undefined)
			return (unusable ? unknown : needed)(
				lacking
					.map(
						({ destination }) =>
							`${destination.name} ${destination.trouble?.message ?? `doesn't note ${commit.slice(0, 12)} yet`}`,
					)
					.join("; "),
				lacking.map(({ destination }) => destination.trouble?.hint).find((hint) => hint !== undefined),
			)
		},
		apply: async () => {
			const { commit, standing } = await survey()
			const lacking = standing.filter(({ newest }) => newest?.commit !== commit)
			const usable = lacking.filter(({ destination }) => destination.trouble === undefined)
			if (usable.length === 0) throw troubleOf(lacking.map(({ destination }) => destination))
			const newest = standing
				.map(({ newest: noted }) => noted?.takenAt ?? "")
				.sort()
				.at(-1)
			const takenAt = takingTime(now(), newest === undefined || newest === "" ? undefined : new Date(newest))
			const sidecar: CommitSidecar = {
				version: 1,
				kind: "commit",
				comfyume: context.comfyume,
				environment: environment.name,
				host: hostConfiguration.name,
				artifact: artifact.name,
				takenAt: takenAt.toISOString(),
				commit,
				branch: checkout.branch,
				remote: checkout.remote,
			}
			const file = `${workDirectory}/${artifact.name}.commit.json`
			await host.files.makeDirectory(workDirectory, 0o700)
			await host.write(file, renderSidecar(sidecar), { mode: 0o600 })
			const facts = await digestFile(host.path(file))
			const failures: unknown[] = []
			for (const { destination } of usable) {
				try {
					const key = sidecarKey(environment.name, artifact.name, snapshotName(takenAt, commit).id, "commit")
					await destination.store.put(key, host.path(file), { ...facts, ifAbsent: true, signal })
				} catch (error) {
					if (signal.aborted) throw error
					failures.push(error)
				}
			}
			await clearWork(host)
			throwTogether([...failures, ...lacking.flatMap(({ destination }) => destination.trouble ?? [])])
		},
	}
}

export type RestoreCheckoutOptions = {
	requires: readonly string[]
	at?: Date
	/** False with `--from`, when git isn't among the sources. */
	gitAllowed: boolean
}

/** Puts a checkout at its pinned commit: the configuration's, else the newest that a backup noted. */
export function restoreCheckout(
	context: StepContext,
	artifact: GitArtifact,
	{ requires, at, gitAllowed }: RestoreCheckoutOptions,
): Step {
	const { environment, hostConfiguration, host, spoken, everySource, signal, summary, gitToken } = context
	const checkout = checkoutOf(context, artifact)
	const pin = environment.git[artifact.checkout].commit
	const wanted: Wanted = {
		environment: environment.name,
		host: hostConfiguration.name,
		spoken,
		allowUnverified: false,
		...(at === undefined ? {} : { at }),
	}

	/** Undefined when nothing pins it: a first deployment takes the tip of its branch. */
	const pinned = async (): Promise<{ commit: string; from: string; takenAt?: Date } | undefined> => {
		if (pin !== undefined) return { commit: pin, from: "configuration" }
		const usable = everySource.filter(({ trouble }) => trouble === undefined)
		if (usable.length === 0) return undefined
		const newest = await newestSidecar(await findCandidates(usable, artifact, wanted), artifact, wanted)
		if (newest?.sidecar.kind !== "commit") return undefined
		return {
			commit: newest.sidecar.commit,
			from: newest.candidate.copies[0]?.source.name ?? "backup",
			takenAt: new Date(newest.sidecar.takenAt),
		}
	}

	const survey = async () => ({ state: await readCheckout(host, checkout), want: await pinned() })

	return {
		id: artifact.name,
		title: artifact.name,
		requires,
		check: async () => {
			const { state, want } = await survey()
			if (state.state === "present" && (want === undefined || state.commit === want.commit)) {
				if (state.remote !== checkout.remote)
					return needed(`it comes from ${state.remote}, not from ${checkout.remote}`)
				summary.set(artifact.name, {
					artifact: artifact.name,
					source: "git",
					snapshot: checkout.branch,
					digest: state.commit.slice(0, 12),
					verified: want === undefined ? "tip of its branch; nothing pins it" : `pinned by ${want.from}`,
					ok: true,
					...(want?.takenAt === undefined ? {} : { ageSeconds: ageSeconds(context, want.takenAt) }),
				})
				const edited = state.changes.length === 0 ? "" : `, with ${state.changes.length} files changed since`
				return satisfied(`${checkout.path} stands at ${state.commit.slice(0, 12)}${edited}`)
			}
			if (state.state !== "present")
				return needed(state.state === "absent" ? `${checkout.path} is not there` : state.because)
			return needed(`it stands at ${state.commit.slice(0, 12)}, pinned is ${want?.commit.slice(0, 12)}`)
		},
		apply: async (report) => {
			if (!gitAllowed)
				throw new OperatorError(`${artifact.name} comes from git, and --from leaves git out`, {
					exitCode: exitCodes.usage,
					hint: `comfyume restore ${spoken} --from git --only ${artifact.name}`,
				})
			const { state, want } = await survey()
			if (state.state === "present" && state.changes.length > 0)
				throw new OperatorError(
					`${checkout.path} has changes that are in no commit, and a restore would lose them: ${state.changes.join(", ")}\n${await changesOf(host, checkout)}`,
					{
						exitCode: exitCodes.refusedByGuard,
						hint: `git -C ${checkout.path} stash   # or commit and push them`,
					},
				)
			if (want === undefined)
				report.note(`no backup notes a commit of ${artifact.name}: it gets the tip of ${checkout.branch}`)
			await checkAccess(checkout, gitToken, signal)
			const aside = `${checkout.path}.replaced-${context.randomId()}`
			if (state.state === "occupied" || (state.state === "present" && state.remote !== checkout.remote)) {
				await host.files.rename(checkout.path, aside)
				report.note(`what stood at ${checkout.path} is kept as ${aside}`)
			}
			await placeCheckout(host, checkout, want?.commit, { token: gitToken, scratch: context.randomId() })
		},
	}
}

function checkoutOf({ environment, host }: StepContext, { checkout }: GitArtifact): Checkout {
	const { path, remote, branch } = environment.git[checkout]
	return { path, remote, branch, user: host.standIn ? "root" : environment.user }
}

/** A commit that the remote doesn't have can't be restored, however well it is noted. */
function rejectUnrepeatable(
	state: Extract<CheckoutState, { state: "present" }>,
	{ path, remote, branch }: Checkout,
): void {
	if (state.remote !== remote)
		throw new OperatorError(`${path} comes from ${state.remote}, not from ${remote} as configured`, {
			hint: `git -C ${path} remote set-url origin ${remote}`,
		})
	if (state.changes.length > 0)
		throw new OperatorError(
			`${path} has changes that are in no commit, and would not come back: ${state.changes.join(", ")}`,
			{ hint: `git -C ${path} diff   # then commit and push, or discard` },
		)
	if (!state.pushed)
		throw new OperatorError(`${path} stands at ${state.commit.slice(0, 12)}, which was never pushed`, {
			hint: `git -C ${path} push origin ${branch}`,
		})
}
