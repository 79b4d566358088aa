// Checkouts in a backup (which commit runs here, and could it be had again?) and in a restore (that commit, again).
import type { GitArtifact } from "../artifacts/catalogue.ts"
import { type Candidate, findCandidates, newestSidecar, type Wanted } from "../artifacts/chain.ts"
import {
	type Checkout,
	type CheckoutState,
	changesOf,
	checkAccess,
	placeCheckout,
	readCheckout,
} from "../artifacts/git.ts"
import {
	aSecondLater,
	type CommitSidecar,
	renderSidecar,
	sidecarKey,
	snapshotName,
	takingTime,
} from "../artifacts/snapshot.ts"
import { alone, isAnothers, type Source } from "../artifacts/source.ts"
import { digestFile } from "../artifacts/tree.ts"
import { exitCodes, messageOf, OperatorError } from "../errors.ts"
import { needed, type Step, satisfied, unknown } from "../plan/step.ts"
import type { Lease } from "../storage/share-lock.ts"
import type { BackupArchiveOptions } from "./backup-archive.ts"
import { ageSeconds, clearWork, heldKey, type StepContext, workDirectory } from "./context.ts"
import { throwTogether, troubleOf } from "./store-snapshot.ts"

/** Notes the running commit in every destination, as long as the remote has it and nothing uncommitted lies here. */
export function backupCheckout(
	context: StepContext,
	artifact: GitArtifact,
	{ destinations, due = destinations, full = false, held = new Map() }: BackupArchiveOptions,
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
		for (const { destination, newest } of standing) {
			if (newest?.commit === state.commit)
				held.set(heldKey(artifact, destination), snapshotName(new Date(newest.takenAt), newest.commit).id)
			else held.delete(heldKey(artifact, destination))
		}
		return { commit: state.commit, branch: state.branch, standing }
	}
	let stored = false
	const lackingOf = <T extends { destination: Source; newest: CommitSidecar | undefined }>(
		standing: readonly T[],
		commit: string,
	): T[] =>
		standing.filter(
			({ destination, newest }) =>
				due.includes(destination) && (newest?.commit !== commit || (full && !stored)),
		)

	/** Two hosts at one commit, backed up in the same second, would have one name: the later one is dated on. */
	const note = async (
		destination: Source,
		first: { id: string; sidecar: CommitSidecar },
		lease: Lease,
	): Promise<void> => {
		const file = `${workDirectory}/${artifact.name}.commit.json`
		await host.files.makeDirectory(workDirectory, 0o700)
		for (let dated = first; ; dated = aSecondLater(dated.sidecar)) {
			await host.write(file, renderSidecar(dated.sidecar), { mode: 0o600 })
			const facts = await digestFile(host.path(file))
			await lease.require()
			const key = sidecarKey(dated.sidecar, dated.id)
			const put = await destination.store.put(key, host.path(file), { ...facts, ifAbsent: true, signal })
			if (put === "stored" || !(await isAnothers(destination, dated))) return
		}
	}

	return {
		id: artifact.name,
		title: artifact.name,
		check: async (report) => {
			const { commit, branch, standing } = await survey()
			if (branch !== checkout.branch)
				report.warn(
					`${checkout.path} stands on ${branch === "" ? "no branch" : `branch ${branch}`}, not on ${checkout.branch} as configured`,
				)
			const lacking = lackingOf(standing, commit)
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
		apply: async (report) => {
			const { commit, branch, standing } = await survey()
			const lacking = lackingOf(standing, commit)
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
				// What git itself says of a checkout that stands on no branch.
				branch: branch === "" ? "HEAD" : branch,
				remote: checkout.remote,
			}
			const failures: unknown[] = []
			for (const { destination } of usable) {
				try {
					const purpose = `backup of ${artifact.name}`
					const again = `comfyume backup ${spoken} --only ${artifact.name}`
					await alone(destination, { purpose, again, note: report.note }, (lease) =>
						note(destination, { id: snapshotName(takenAt, commit).id, sidecar }, lease),
					)
				} catch (error) {
					if (signal.aborted) throw error
					failures.push(error)
				}
			}
			await clearWork(host)
			stored = true
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
		const answers = await Promise.all(everySource.map((source) => ask(source)))
		const newest = answers
			.flatMap(({ newest }) => newest ?? [])
			.sort((a, b) => b.candidate.name.id.localeCompare(a.candidate.name.id))[0]
		if (newest?.sidecar.kind === "commit")
			return {
				commit: newest.sidecar.commit,
				from: newest.candidate.copies[0]?.source.name ?? "backup",
				takenAt: new Date(newest.sidecar.takenAt),
			}
		const problems = answers.flatMap(({ problem }) => problem ?? [])
		if (problems.length > 0) throw unpinned(artifact, checkout, problems)
		return undefined
	}

	/** What one source says of the commit that ran; a problem, when it can't say that there was none. */
	const ask = async (
		source: Source,
	): Promise<{ newest?: Awaited<ReturnType<typeof newestSidecar>>; problem?: OperatorError }> => {
		const { at: _, ...whenever } = wanted
		try {
			if (source.trouble !== undefined) throw source.trouble
			const all = await findCandidates([source], artifact, whenever)
			const candidates = all.filter(({ name }) => at === undefined || name.takenAt <= at)
			const newest = await newestSidecar(candidates, artifact, wanted)
			if (newest !== undefined) return { newest }
			return all.length === 0 ? {} : { problem: nothingReadable(all, candidates, wanted) }
		} catch (error) {
			if (signal.aborted) throw error
			const { exitCode, hint } = error instanceof OperatorError ? error : {}
			return {
				problem: new OperatorError(`${source.name}: ${messageOf(error)}`, {
					cause: error,
					...(exitCode === undefined ? {} : { exitCode }),
					...(hint === undefined ? {} : { hint }),
				}),
			}
		}
	}

	const survey = async () => ({ state: await readCheckout(host, checkout), want: await pinned() })

	return {
		id: artifact.name,
		title: artifact.name,
		requires,
		check: async (report) => {
			const { state, want } = await survey()
			if (state.state === "present" && state.interrupted !== undefined)
				return needed(
					`an earlier run was stopped while it moved ${checkout.path} to ${state.interrupted.slice(0, 12)}`,
				)
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
				if (state.changes.length > 0)
					report.warn(
						`${checkout.path} has changes that are in no commit, and they are left as they are: ${state.changes.join(", ")}`,
					)
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
			if (state.state === "present") await rejectLoss(context, checkout, state)
			if (want === undefined)
				report.note(`no backup notes a commit of ${artifact.name}: it gets the tip of ${checkout.branch}`)
			await checkAccess(checkout, gitToken, signal)
			const aside = await placeCheckout(host, checkout, want?.commit, {
				token: gitToken,
				scratch: context.randomId(),
			})
			if (aside !== undefined) report.note(`what stood at ${checkout.path} is kept as ${aside}`)
		},
	}
}

/** An artifact's checkout as this environment configures it. */
export function checkoutOf({ environment, host }: StepContext, { checkout }: GitArtifact): Checkout {
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

/** What a restore would lose. A checkout of another remote is kept aside as a whole, with its commits. */
async function rejectLoss(
	{ host }: StepContext,
	checkout: Checkout,
	{ remote, changes, interrupted, unpushed }: Extract<CheckoutState, { state: "present" }>,
): Promise<void> {
	const { path, branch } = checkout
	// Of a checkout that a stopped run left, it is known file by file what is somebody's work, and asked for there.
	if (changes.length > 0 && interrupted === undefined)
		throw new OperatorError(
			`${path} has changes that are in no commit, and a restore would lose them: ${changes.join(", ")}\n${await changesOf(host, checkout)}`,
			{ exitCode: exitCodes.refusedByGuard, hint: `git -C ${path} stash   # or commit and push them` },
		)
	if (unpushed !== undefined && remote === checkout.remote)
		throw new OperatorError(
			`${path} holds ${unpushed.slice(0, 12)}, which was never pushed, and a restore would lose it`,
			{
				exitCode: exitCodes.refusedByGuard,
				hint: `git -C ${path} push origin ${unpushed.slice(0, 12)}:refs/heads/${branch}   # or to another branch`,
			},
		)
}

/** A source that lists snapshots has known a commit: the tip of the branch would be a guess. */
function nothingReadable(
	all: readonly Candidate[],
	candidates: readonly Candidate[],
	{ at, host }: Wanted,
): OperatorError {
	const place = all[0]?.copies[0]?.source.name ?? "a source"
	return new OperatorError(
		candidates.length === 0 && at !== undefined
			? `${place}: it notes no commit from before ${at.toISOString()}`
			: `${place}: it lists ${candidates.length} noted ${candidates.length === 1 ? "commit" : "commits"}, and none can be read and is of ${host}`,
	)
}

function unpinned(
	{ name }: GitArtifact,
	{ path, branch }: Checkout,
	problems: readonly OperatorError[],
): OperatorError {
	const codes = new Set(problems.map(({ exitCode }) => exitCode))
	const [code] = codes
	return new OperatorError(
		`which commit of ${name} ran at ${path} can't be known, and the tip of ${branch} may be another: ${problems.map(messageOf).join("; ")}`,
		{
			exitCode: codes.size === 1 && code !== undefined ? code : exitCodes.incomplete,
			hint: "run it again when the source is back, or pin `commit:` of this checkout in comfyume.yaml",
			cause: problems[0],
		},
	)
}
