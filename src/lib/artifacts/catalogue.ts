// The catalogue of artifacts: what is backed up and restored, from manifests/artifacts.yaml.
import { readFile } from "node:fs/promises"
import { join } from "node:path"
import { parse } from "yaml"
import { z } from "zod"
import { exitCodes, OperatorError, systemError } from "../errors.ts"
import { scheduleSchema } from "./schedule.ts"

const nameSchema = z
	.string()
	.regex(/^[a-z][a-z0-9-]{1,40}$/, "lower-case letters, digits and dashes")
	// Records lie beside the artifacts' snapshots in every store.
	.refine((name) => name !== "records", "another name: `records` is taken")

const absolutePath = z.string().regex(/^(\/|\{)/, "an absolute path")

const sizeSchema = z.string().transform((text, context) => {
	const match = /^(\d+) (B|KiB|MiB|GiB|TiB)$/.exec(text)
	const [, number, unit] = match ?? []
	if (number === undefined || unit === undefined) {
		context.addIssue({ code: "custom", message: "a size, as in `64 MiB`" })
		return z.NEVER
	}
	return Number(number) * 1024 ** ["B", "KiB", "MiB", "GiB", "TiB"].indexOf(unit)
})

const modeSchema = z
	.string()
	.regex(/^0[0-7]{3}$/, "a mode of three octal digits behind a 0")
	.transform((text) => Number.parseInt(text, 8))

const bucketSchema = z.enum(["cache", "models", "images", "userFiles"])

/** When to back up to which destination (UTC). A destination that isn't named is none of `backup --scheduled`. */
const schedulesSchema = z.strictObject({ share: scheduleSchema.optional(), r2: scheduleSchema.optional() })

const count = z.number().int().min(0).max(1000).default(0)

/** Of how many days, ISO weeks and months the newest snapshot is kept on the share. */
const retentionSchema = z
	.strictObject({ daily: count, weekly: count, monthly: count })
	.refine(({ daily }) => daily > 0, "at least one `daily`: the newest snapshot always stays")

/** How often `backup drill --scheduled` brings the newest snapshots back on trial. */
const drillSchema = z.enum(["weekly", "monthly"])

/** What holds for every artifact of a bucket; an artifact's own fields win. */
const rulesSchema = z.strictObject({
	schedule: schedulesSchema,
	retention: retentionSchema.optional(),
	drill: drillSchema.default("monthly"),
})

const ownRules = {
	schedule: schedulesSchema.optional(),
	retention: retentionSchema.optional(),
	drill: drillSchema.optional(),
}

const archiveSchema = z.strictObject({
	...ownRules,
	name: nameSchema,
	holds: z.string(),
	kind: z.literal("archive"),
	roles: z.array(z.enum(["app", "worker"])).min(1),
	/** Taken and brought back only when `--only` names it. */
	byRequest: z.boolean().default(false),
	/** Not on every server: absent it is no fault, unless there are snapshots of it. */
	optional: z.boolean().default(false),
	/** Holds keys or passwords: encrypted where the environment has recipients. Not for incremental ones. */
	secret: z.boolean().default(false),
	bucket: bucketSchema,
	/** Of large trees: a snapshot packs what has changed, and an index names the archives that hold the rest. */
	incremental: z.boolean().default(false),
	paths: z.array(absolutePath).min(1),
	exclude: z.array(absolutePath).default([]),
	/** `tree`: afterwards there is what the snapshot holds and nothing else. `files`: what else lies there stays. */
	replace: z.enum(["tree", "files"]),
	modes: z.array(z.strictObject({ path: absolutePath, mode: modeSchema, owner: z.string() })),
	floor: z.strictObject({
		minimumBytes: z.number().int().positive(),
		members: z.array(z.strictObject({ path: absolutePath, minimumBytes: z.number().int().positive() })),
	}),
	mostBytes: sizeSchema,
	/** A command that must succeed with the restored files in place; otherwise the old ones return. */
	validate: z.array(z.string()).min(1).optional(),
	/** What makes a running service take the restored files. */
	reload: z.strictObject({ unit: z.string(), command: z.array(z.string()).min(1) }).optional(),
	/** Keys of the scripts that came before, `{date}` standing for YYYY-MM-DD. They have no sidecar. */
	olderNames: z.array(z.string()).default([]),
})

const gitSchema = z.strictObject({
	...ownRules,
	name: nameSchema,
	holds: z.string(),
	kind: z.literal("git"),
	roles: z.array(z.enum(["app", "worker"])).min(1),
	byRequest: z.boolean().default(false),
	bucket: bucketSchema,
	/** Which of the environment's checkouts this is. */
	checkout: z.enum(["project", "scripts"]),
})

const modelsSchema = z.strictObject({
	...ownRules,
	name: nameSchema,
	holds: z.string(),
	/** Files on the share under their own names, as the manifest of models lists them; no snapshots. */
	kind: z.literal("models"),
	roles: z.array(z.enum(["app", "worker"])).min(1),
	byRequest: z.boolean().default(false),
	bucket: z.literal("models"),
})

const imagesSchema = z.strictObject({
	...ownRules,
	name: nameSchema,
	holds: z.string(),
	/** The stack's container images: an artifact of its own for each that this role runs. */
	kind: z.literal("images"),
	roles: z.array(z.enum(["app", "worker"])).min(1),
	byRequest: z.boolean().default(false),
	bucket: z.literal("images"),
})

const catalogueSchema = z
	.strictObject({
		version: z.literal(1),
		buckets: z.record(bucketSchema, rulesSchema),
		artifacts: z.array(z.discriminatedUnion("kind", [archiveSchema, gitSchema, imagesSchema, modelsSchema])),
	})
	.superRefine(({ buckets, artifacts }, context) => {
		const names = new Set<string>()
		for (const { name } of artifacts) {
			if (names.has(name)) context.addIssue({ code: "custom", message: `two artifacts are called ${name}` })
			names.add(name)
		}
		for (const artifact of artifacts)
			if (artifact.kind === "archive" && artifact.secret && artifact.incremental)
				context.addIssue({
					code: "custom",
					message: `${artifact.name} is secret and incremental: only one can be`,
				})
		for (const { name, kind, bucket, schedule = buckets[bucket].schedule } of artifacts)
			for (const timing of [schedule.share, schedule.r2])
				if (timing !== undefined && (kind === "models") !== (timing.hours.length === 0))
					context.addIssue({
						code: "custom",
						message: `${name} is backed up by \`${timing.text}\`: \`new files\` is for models, and for nothing else`,
					})
	})

export type RetentionClasses = z.output<typeof retentionSchema>
export type ArchiveArtifact = z.output<typeof archiveSchema>
export type GitArtifact = z.output<typeof gitSchema>
type ModelsArtifact = z.output<typeof modelsSchema>
/** One image of those that an entry of the catalogue stands for. */
export type ImageArtifact = Omit<z.output<typeof imagesSchema>, "kind"> & {
	kind: "image"
	/** As the entry is called: `--only` takes this name for all of its images. */
	group: string
	/** The image's name, as in `comfyume-frontend:v0.11.0`. */
	image: string
}
/** Those that dated snapshots are taken of. */
export type SnapshotArtifact = ArchiveArtifact | GitArtifact | ImageArtifact
export type Artifact = SnapshotArtifact | ModelsArtifact

/** What the placeholders of the catalogue stand for in one environment. Absolute paths. */
export type Places = { user: string; project?: string; scripts?: string } & Partial<
	Record<"stack" | "certificates" | "letsencrypt" | "outputs" | "inputs" | "backups", string>
>

/**
 * The artifacts of a role in one environment, in the order of a restore, placeholders filled in. An artifact whose
 * placeholder the environment doesn't configure (no scripts repository, say) isn't among them.
 * @param packageRoot the directory that holds `manifests/`
 * @param images artifact -> image, of those that this role runs
 * @throws {OperatorError} (2) when the manifest is damaged
 */
export async function readCatalogue(
	packageRoot: string,
	role: "app" | "worker",
	places: Places,
	images: ReadonlyMap<string, string>,
): Promise<Artifact[]> {
	const file = join(packageRoot, "manifests/artifacts.yaml")
	const text = await readFile(file, "utf8").catch((error) => {
		throw systemError(error, `reading ${file}`)
	})
	const { artifacts, buckets } = parseCatalogue(text, file)
	return artifacts
		.map((artifact) => ({ ...buckets[artifact.bucket], ...artifact }))
		.filter(({ roles }) => roles.includes(role))
		.flatMap((entry): Artifact[] => (entry.kind === "images" ? eachImage(entry, images) : [entry]))
		.map((artifact) => fill(artifact, places))
		.filter((artifact) => artifact !== undefined)
}

/**
 * Reads the catalogue's text.
 * @param file what errors call it
 * @throws {OperatorError} (2) naming every problem
 */
export function parseCatalogue(text: string, file: string): z.output<typeof catalogueSchema> {
	const parsed = catalogueSchema.safeParse(parse(text))
	if (parsed.success) return parsed.data
	throw new OperatorError(`${file}: ${z.prettifyError(parsed.error)}`, { exitCode: exitCodes.usage })
}

/**
 * Picks what a run is about: all but what is taken only by request; with `only`, exactly those; and `also` these.
 * @throws {OperatorError} (2) for a name that isn't in the catalogue
 */
export function selectArtifacts(
	artifacts: readonly Artifact[],
	{
		only,
		skip,
		also = [],
		others = [],
	}: {
		only: readonly string[]
		skip: readonly string[]
		also?: readonly string[]
		/** Names that are no artifacts, for who has mistyped one. */
		others?: readonly string[]
	},
): Artifact[] {
	const names = [...new Set([...artifacts.flatMap(namesOf), ...others])]
	for (const name of [...only, ...skip]) {
		if (!names.includes(name))
			throw new OperatorError(`there is no artifact ${name} on this host`, {
				exitCode: exitCodes.usage,
				hint: `choose from: ${names.join(", ")}`,
			})
	}
	const selected = artifacts.filter((artifact) => {
		const isNamedIn = (list: readonly string[]) => namesOf(artifact).some((name) => list.includes(name))
		if (isNamedIn(skip)) return false
		return isNamedIn(also) || (only.length === 0 ? !artifact.byRequest : isNamedIn(only))
	})
	if (selected.length === 0)
		throw new OperatorError("--skip leaves nothing of what --only names", {
			exitCode: exitCodes.usage,
			hint: `choose from: ${names.join(", ")}`,
		})
	return selected
}

/** What an artifact answers to: its own name, and that of the catalogue's entry it is a part of. */
export const namesOf = (artifact: Artifact): readonly string[] =>
	artifact.kind === "image" ? [artifact.group, artifact.name] : [artifact.name]

function eachImage(
	entry: z.output<typeof imagesSchema>,
	images: ReadonlyMap<string, string>,
): ImageArtifact[] {
	return [...images].map(([name, image]) => ({ ...entry, kind: "image", group: entry.name, name, image }))
}

function fill(artifact: Artifact, places: Places): Artifact | undefined {
	if (artifact.kind === "models" || artifact.kind === "image") return artifact
	if (artifact.kind === "git") return places[artifact.checkout] === undefined ? undefined : artifact
	const values: Readonly<Record<string, string | undefined>> = places
	const placed = (text: string) => text.replaceAll(/\{(\w+)\}/g, (whole, key: string) => values[key] ?? whole)
	const filled = artifact.paths.map(placed)
	if (filled.some((path) => path.includes("{"))) return undefined
	return {
		...artifact,
		// One that lies below another is part of it.
		paths: filled.filter((path) => !filled.some((other) => path.startsWith(`${other}/`))),
		// An exclude whose checkout isn't configured excludes nothing.
		exclude: artifact.exclude.map(placed).filter((path) => !path.includes("{")),
		modes: artifact.modes.map((rule) => ({ ...rule, path: placed(rule.path), owner: placed(rule.owner) })),
		floor: {
			...artifact.floor,
			members: artifact.floor.members.map((member) => ({ ...member, path: placed(member.path) })),
		},
	}
}
