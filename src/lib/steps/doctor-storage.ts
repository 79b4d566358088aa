// What the places of backups are like: the buckets and what keeps them from being emptied, the share and its room.
import { access, constants, statfs } from "node:fs/promises"
import { dirname, join } from "node:path"
import type { Artifact } from "../artifacts/catalogue.ts"
import { snapshotPrefix } from "../artifacts/snapshot.ts"
import { copiesAmong, listOlderCopies, unfinishedArchives } from "../artifacts/source.ts"
import { codeOf, exitCodes, messageOf, OperatorError, systemError } from "../errors.ts"
import { checkR2Endpoint } from "../formats/r2-endpoint.ts"
import { needed, type Report, type Step, satisfied } from "../plan/step.ts"
import { covers, type LockRule } from "../storage/bucket-lock.ts"
import type { ObjectHead } from "../storage/object-store.ts"
import { formatBytes, formatSeconds } from "../ui/format.ts"
import { ageSeconds, type StepContext } from "./context.ts"
import { openShareBackups, readShareSentinel, requireMountPoint, shareDirectory } from "./open.ts"
import type { OpenedBucket } from "./open-buckets.ts"

/** A check that fails does so with its fix: it throws, so that it fails also where other steps are applied. */
type Check = (report: Report) => Promise<string>

const checkStep = (id: string, title: string, check: Check, more: Pick<Step, "lane" | "requires">): Step => ({
	id,
	title,
	...more,
	check: async (report) => satisfied(await check(report)),
	apply: async () => {},
})

/** One lane per bucket and one for the share: none waits for another one's time-out. */
export function storageSteps(
	context: StepContext,
	artifacts: readonly Artifact[],
	{ probeDelete }: { probeDelete: boolean },
): Step[] {
	const { environment, buckets } = context
	return [
		...buckets.flatMap((bucket) => bucketSteps(context, bucket, probeDelete)),
		...(environment.share === undefined ? [] : shareSteps(context, environment.share, artifacts)),
	]
}

function bucketSteps(context: StepContext, bucket: OpenedBucket, probeDelete: boolean): Step[] {
	const { environment, now, signal } = context
	const { role, configuration, provider } = bucket
	const { bucket: name, endpoint, jurisdiction } = configuration
	const lane = role
	const reached = `${role}/reached`
	const step = (id: string, title: string, check: Check, requires: readonly string[] = []) =>
		checkStep(`${role}/${id}`, title, check, { lane, requires })
	return [
		step("endpoint", `the endpoint of ${name}`, async () => {
			if (provider !== "r2") return `${endpoint}, an S3 service that isn't R2`
			const [problem] = checkR2Endpoint(endpoint, { jurisdiction })
			if (problem === undefined) return `${endpoint}, jurisdiction ${jurisdiction}`
			throw new OperatorError(`${endpoint} ${problem.message}`, {
				exitCode: exitCodes.usage,
				hint: problem.fix,
			})
		}),
		step("reached", `${name} answers`, async () => {
			await (await bucket.store()).probe()
			return `its list can be read${probeDelete ? "" : "; whether it can be written is only tried with --probe-delete"}`
		}),
		step("lock", `what locks ${name}`, async (report) => {
			const rules = await bucket.lockRules()
			if (rules !== undefined) return judgeLock(context, bucket, rules)
			report.note(
				provider === "r2"
					? `the lock of ${name} is not proven: set CLOUDFLARE_API_TOKEN (Workers R2 Storage: Read), or try with --probe-delete`
					: `the lock of ${name} is not proven: this service doesn't tell; try with --probe-delete`,
			)
			return "not proven"
		}),
		step(
			"uploads",
			`unfinished uploads in ${name}`,
			async (report) => {
				const store = await bucket.store()
				let count = 0
				for await (const { key, startedAt } of store.listUnfinished?.("") ?? []) {
					signal.throwIfAborted()
					if (count++ < 5)
						report.note(
							`${name}: ${key} was begun ${formatSeconds(ageSeconds({ now }, startedAt))} ago and not finished`,
						)
				}
				return count === 0 ? "none" : `${count}; R2 aborts them after a week by itself`
			},
			[reached],
		),
		...(probeDelete ? [probeStep(context, bucket, environment.name)] : []),
	]
}

function judgeLock(
	{ environment, now }: StepContext,
	bucket: OpenedBucket,
	rules: readonly LockRule[],
): string {
	const { role, configuration, provider } = bucket
	const { bucket: name, jurisdiction } = configuration
	// Models lie under their own names; everything else below the environment's.
	const stored = role === "models" ? "" : `${environment.name}/`
	const effective = rules.filter((rule) => covers(rule, stored, now()))
	if (effective.length > 0) return rules.map(describeRule).join("; ")
	const found = rules.length === 0 ? "it has no rule" : rules.map(describeRule).join("; ")
	throw new OperatorError(
		`${name} is not locked: none of its rules covers ${stored === "" ? "all that is stored" : stored} (${found})`,
		{
			hint:
				provider === "r2"
					? `npx wrangler r2 bucket lock add ${name} keep --retention-days 400 --jurisdiction ${jurisdiction}   # or in the dashboard: R2, ${name}, Settings, Bucket lock rules`
					: `aws s3api put-object-lock-configuration --bucket ${name} …   # with a default retention`,
		},
	)
}

function describeRule({ name, prefix, enabled, lasts }: LockRule): string {
	const long =
		lasts.kind === "always"
			? "for ever"
			: lasts.kind === "until"
				? `until ${lasts.date.toISOString().slice(0, 10)}`
				: `for ${formatSeconds(lasts.seconds)}`
	return `${name}${enabled ? "" : " (off)"}: ${prefix === "" ? "everything" : `what begins with ${prefix}`}, ${long}`
}

function probeStep(context: StepContext, bucket: OpenedBucket, environment: string): Step {
	const { hostConfiguration, now, randomId, comfyume } = context
	const { bucket: name } = bucket.configuration
	let proven: string | undefined
	return {
		id: `${bucket.role}/probe`,
		title: `whether ${name} lets its objects be deleted`,
		lane: bucket.role,
		requires: [`${bucket.role}/reached`],
		check: async () => (proven === undefined ? needed("not tried yet") : satisfied(proven)),
		apply: async () => {
			const { key, outcome } = await bucket.probeDelete({
				...{ environment, host: hostConfiguration.name, at: now(), randomId: randomId(), comfyume },
			})
			if (outcome === "locked") proven = `proven append-only: its lock refused to delete ${key}`
			else if (outcome === "denied")
				proven = `these credentials may not delete ${key}; what its lock does for others is not proven`
			else
				throw new OperatorError(
					outcome === "deleted"
						? `${name} is not locked: the probe ${key} could be deleted`
						: `${name} hides what is deleted: the probe ${key} is out of sight, only a version of it is kept`,
					{ hint: `lock it: dash.cloudflare.com, R2, ${name}, Settings, Bucket lock rules; then try again` },
				)
		},
	}
}

type Share = NonNullable<StepContext["environment"]["share"]>

/** Fuller than this, a share fails: the next backup may not fit. */
const mostUsed = 0.9

function shareSteps(context: StepContext, share: Share, artifacts: readonly Artifact[]): Step[] {
	const { environment, host, spoken, now, signal } = context
	const [mountPoint] = shareDirectory(host, share)
	const backups = join(mountPoint, share.backups)
	const store = openShareBackups(host, share)
	const [mounted, ours] = ["share/mounted", "share/environment"] as const
	// What another environment keeps on it is nothing to be judged here.
	const requiredBy = (id: string) =>
		id === "mounted" ? [] : ["older", "unfinished"].includes(id) ? [mounted, ours] : [mounted]
	const step = (id: string, title: string, check: Check) =>
		checkStep(`share/${id}`, title, check, { lane: "share", requires: requiredBy(id) })
	return [
		step("mounted", "the share is mounted", async () => {
			await requireMountPoint(host, share, mountPoint)
			return `${mountPoint}, as ${share.filesystem}`
		}),
		step("writable", "the share can be written", async () => {
			const directory = await nearestThere(backups)
			try {
				// Asked of the server, where there is one: its answer also holds for root.
				await access(directory, constants.W_OK)
			} catch (error) {
				throw new OperatorError(`${directory} can't be written: ${systemError(error, "asked").message}`, {
					hint: `findmnt --target ${directory}; ls -ld ${directory}`,
					cause: error,
				})
			}
			return directory
		}),
		step("room", "the share has room", async () => {
			const { bavail, blocks, bfree, bsize, files, ffree } = await statfs(mountPoint)
			const used = (blocks - bfree) / Math.max(1, blocks - bfree + bavail)
			const usedInodes = files === 0 ? 0 : (files - ffree) / files
			const says = `${formatBytes(bavail * bsize)} free, ${percent(used)} used; ${files === 0 ? "no limit of inodes" : `${ffree} inodes free, ${percent(usedInodes)} used`}`
			if (used < mostUsed && usedInodes < mostUsed) return says
			throw new OperatorError(says, {
				exitCode: exitCodes.noSpace,
				hint: `comfyume backup retention ${spoken} --dry-run   # what no class keeps`,
			})
		}),
		step("environment", "the share is this environment's", async () => {
			const named = await readShareSentinel(share, mountPoint)
			return named === undefined
				? "there is no file ENVIRONMENT on it to tell"
				: `its file ENVIRONMENT names ${named.join(" and ")}`
		}),
		step("older", "backups of the older scripts on the share", async (report) => {
			const patterns = artifacts.flatMap((artifact) =>
				artifact.kind === "archive" ? artifact.olderNames : [],
			)
			const found = await listOlderCopies({ name: "share", store }, patterns)
			const [newest] = found.map(({ name }) => name.takenAt).sort((a, b) => b.getTime() - a.getTime())
			if (newest === undefined) return "none"
			report.note(
				`backups without a sidecar are restored with --allow-unverified only: ${found.length} on the share`,
			)
			return `${found.length}, the newest of ${newest.toISOString().slice(0, 10)}`
		}),
		step("unfinished", "unfinished snapshots on the share", async (report) => {
			const source = { name: "share" as const, store }
			const heads: ObjectHead[] = []
			for await (const head of store.list(`${environment.name}/`)) {
				signal.throwIfAborted()
				heads.push(head)
			}
			const unfinished = unfinishedArchives(
				(artifact) => copiesAmong(source, heads, snapshotPrefix(environment.name, artifact)),
				artifacts,
			)
			for (const { key, storedAt } of unfinished.slice(0, 5))
				report.note(`share: ${key} has no sidecar, since ${formatSeconds(ageSeconds({ now }, storedAt))}`)
			return unfinished.length === 0 ? "none" : `${unfinished.length}; they count for nothing`
		}),
	]
}

const percent = (part: number) => `${Math.round(part * 100)} %`

/** The directory itself, or the deepest one above it: the first backup makes the rest. */
async function nearestThere(directory: string): Promise<string> {
	try {
		await access(directory, constants.F_OK)
		return directory
	} catch (error) {
		if (codeOf(error) !== "ENOENT" || dirname(directory) === directory)
			throw new OperatorError(`${directory}: ${messageOf(error)}`, { cause: error })
		return nearestThere(dirname(directory))
	}
}
