// What stands in the share and in the bucket, judged without any of comfyume's code.
import { execFileSync } from "node:child_process"
import { existsSync, readdirSync, readFileSync } from "node:fs"
import { join } from "node:path"
import { bucket, sha256, type World } from "./cli.ts"

type Stored = { place: "share" | "r2"; key: string; content: Buffer }

/** Everything that stands under a final name: what begins with a dot is not there yet. */
export async function storedIn({ share, s3 }: Pick<World, "share" | "s3">): Promise<Stored[]> {
	const root = join(share, "cache/backups")
	const files = existsSync(root) ? readdirSync(root, { recursive: true, withFileTypes: true }) : []
	const onShare = files
		.filter((entry) => entry.isFile() && !entry.name.startsWith("."))
		.map((entry) => join(entry.parentPath, entry.name))
		.map((file) => ({
			place: "share" as const,
			key: file.slice(root.length + 1),
			content: readFileSync(file),
		}))
	const inBucket = await Promise.all(
		s3.objects.keys(bucket).map(async (key) => ({
			place: "r2" as const,
			key,
			content: await s3.objects.read(bucket, key),
		})),
	)
	return [...onShare, ...inBucket]
}

/** What is wrong with what is stored: archives that aren't whole, sidecars that don't fit theirs. */
export function wrongWith(stored: readonly Stored[]): string[] {
	const find = (place: string, key: string) =>
		stored.find((other) => other.place === place && other.key === key)?.content
	return stored.flatMap(({ place, key, content }) => {
		const name = `${place}: ${key}`
		// Without its key only its sidecar can say whether an encrypted one is whole.
		if (key.endsWith(".tar.zst.age")) return []
		if (key.endsWith(".tar.zst") || key.endsWith(".index.zst")) {
			try {
				execFileSync("zstd", ["--quiet", "--test", "-"], { input: content, stdio: "pipe" })
				return []
			} catch {
				return [`${name} is not a whole archive`]
			}
		}
		const sidecar: { digest?: string; commit?: string } = JSON.parse(content.toString("utf8"))
		if (key.endsWith(".commit.json")) return sidecar.commit === undefined ? [`${name} names no commit`] : []
		const archive = find(place, key.replace(/\.index\.json$/, ".tar.zst.json").replace(/\.json$/, ""))
		if (archive === undefined) return [`${name} has no archive`]
		return sha256(archive) === sidecar.digest ? [] : [`${name} is not its archive's`]
	})
}

/** What the snapshots hold, whenever they were taken: artifact and digest of the tree or commit, once per place. */
export function contentsOf(stored: readonly Stored[]): string[] {
	const contents = stored
		.filter(({ key }) => key.endsWith(".json"))
		.map(({ place, content }) => {
			const { artifact, treeDigest, commit }: Record<string, string> = JSON.parse(content.toString("utf8"))
			return `${place} ${artifact} ${treeDigest ?? commit}`
		})
	return [...new Set(contents)].sort()
}
