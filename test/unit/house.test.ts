// The house rules bite: every breach is planted in a copy of the house, and the real linter must refuse it.
import { execFile } from "node:child_process"
import { copyFile, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { afterAll, beforeAll, expect, test } from "vitest"
import { z } from "zod"

const root = fileURLToPath(new URL("../..", import.meta.url))

// From the top to the bottom; folders of one row may not import each other.
const rows = [
	["steps"],
	["artifacts"],
	["models"],
	["stack"],
	["verda", "dns", "tailscale"],
	["storage"],
	["host"],
	["plan"],
	["config"],
	["ui"],
	["formats"],
] as const
const services = ["queue-manager", "worker-agent", "admin", "auth-gate"] as const
const foldersOfLib = rows.flat()

// Where each dependency may be imported; everywhere else in src it is refused.
const doors: Readonly<Record<string, RegExp>> = {
	"age-encryption": /^src\/lib\/artifacts\/encryption\.ts$/,
	execa: /^src\/lib\/host\/local\.ts$/,
	"node:child_process": /^scripts\//,
	ssh2: /^src\/lib\/host\/(ssh|known-hosts)\.ts$/,
	"ssh2/lib/utils.js": /^src\/lib\/host\/(ssh|known-hosts)\.ts$/,
	"@aws-sdk/client-s3": /^src\/lib\/storage\/s3(-upload)?\.ts$/,
	"@smithy/node-http-handler": /^src\/lib\/storage\/s3(-upload)?\.ts$/,
	listr2: /^src\/lib\/plan\/reporters\//,
	chalk: /^src\/lib\/ui\//,
	commander: /^src\/(cli\.ts|commands\/)/,
	redis: /^src\/queue-manager\/queue\//,
	ioredis: /^src\/queue-manager\/queue\//,
	"@redis/client": /^src\/queue-manager\/queue\//,
	zx: /^scripts\//,
	"zx/globals": /^scripts\//,
	"node:process": /^src\/(cli\.ts|[a-z-]+\/main\.ts|lib\/config\/)|^scripts\//,
}

// One file in each place that a rule knows.
const places = [
	"src/cli.ts",
	"src/commands/restore.ts",
	...foldersOfLib.map((folder) => `src/lib/${folder}/thing.ts`),
	"src/lib/errors.ts",
	"src/lib/artifacts/encryption.ts",
	"src/lib/host/local.ts",
	"src/lib/host/ssh.ts",
	"src/lib/host/known-hosts.ts",
	"src/lib/storage/s3.ts",
	"src/lib/storage/s3-upload.ts",
	"src/lib/plan/reporters/interactive.ts",
	"src/lib/ui/color.ts",
	"src/queue-manager/queue/connection.ts",
	"scripts/tidy.ts",
	...services.flatMap((service) => [`src/${service}/main.ts`, `src/${service}/queue.ts`]),
] as const

type Plant = { file: string; text: string; refused: boolean }

const plants: Plant[] = [
	...importsOfLib(),
	...importsOfServices(),
	...Object.entries(doors).flatMap(([dependency, open]) =>
		places.map((file) => ({
			file,
			text: `import "${dependency}"\n`,
			refused: file.startsWith("src/") && !open.test(file),
		})),
	),
	{ file: "test/unit/x.test.ts", text: 'import "zx"\n', refused: true },
	...["src/lib/storage/thing.ts", "src/lib/host/ssh.ts", "src/commands/restore.ts", "src/admin/queue.ts"].map(
		(file) => ({
			file,
			text: "export const home = process.env.HOME\n",
			refused: true,
		}),
	),
	...["src/cli.ts", "src/admin/main.ts", "src/lib/config/thing.ts", "scripts/x.ts", "test/x.ts"].map(
		(file) => ({
			file,
			text: "export const home = process.env.HOME\n",
			refused: false,
		}),
	),
	// However the import is written.
	...[
		'export * from "../steps/thing.ts"',
		'export { x } from "../steps/thing.ts"',
		'await import("../steps/thing.ts")',
		'import type { X } from "../../lib/steps/thing.ts"\nexport type Y = X',
	].map((text) => ({ file: "src/lib/plan/thing.ts", text: `${text}\n`, refused: true })),
	...[
		'console.log("x")',
		"export default 1",
		"export const a = [1].at(0)!",
		"export const f = async () => 1\nf()",
		"if (Promise.resolve(false)) throw new Error()",
		'import fs from "fs"\nexport const x = fs',
	].map((text) => ({ file: "src/lib/plan/thing.ts", text: `${text}\n`, refused: true })),
	{ file: "vitest.config.ts", text: "export default {}\n", refused: false },
]

function importsOfLib(): Plant[] {
	const known = rows.flatMap((row, rank) => row.map((folder) => ({ folder, rank })))
	const pairs = known.flatMap(({ folder, rank }) =>
		known
			.filter((other) => other.folder !== folder)
			.map((other) => ({
				file: `src/lib/${folder}/thing.ts`,
				text: `import "../${other.folder}/thing.ts"\n`,
				refused: other.rank <= rank,
			})),
	)
	// Files with a door of their own stand under the same rule.
	const exceptions = [
		"artifacts/encryption",
		"host/local",
		"host/ssh",
		"host/known-hosts",
		"storage/s3",
		"plan/reporters/json",
	].flatMap((name) =>
		known.map(({ folder, rank }) => {
			const [own = ""] = name.split("/")
			const up = name.split("/").length === 3 ? "../../" : "../"
			const ownRank = known.find((one) => one.folder === own)?.rank ?? 0
			return {
				file: `src/lib/${name}.ts`,
				text: `import "${up}${folder}/thing.ts"\n`,
				refused: rank <= ownRank && folder !== own,
			}
		}),
	)
	const bottom = foldersOfLib.map((folder) => ({
		file: "src/lib/errors.ts",
		text: `import "./${folder}/thing.ts"\n`,
		refused: true,
	}))
	const free = foldersOfLib.flatMap((folder) => [
		{
			file: `src/lib/${folder}/thing.ts`,
			text: 'import "../errors.ts"\nimport "./other.ts"\n',
			refused: false,
		},
		{ file: `src/lib/${folder}/thing.ts`, text: 'import "../../commands/restore.ts"\n', refused: true },
		{ file: `src/lib/${folder}/thing.ts`, text: 'import "../../cli.ts"\n', refused: true },
		{ file: "src/commands/restore.ts", text: `import "../lib/${folder}/thing.ts"\n`, refused: false },
	])
	const commands = [
		{ file: "src/commands/restore.ts", text: 'import "./backup.ts"\n', refused: true },
		{ file: "src/commands/restore.ts", text: 'import "../commands/backup.ts"\n', refused: true },
		{ file: "src/cli.ts", text: 'await import("./commands/restore.ts")\n', refused: false },
	]
	return [...pairs, ...exceptions, ...bottom, ...free, ...commands]
}

function importsOfServices(): Plant[] {
	return services.flatMap((service) => [
		...[`src/${service}/main.ts`, `src/${service}/queue.ts`].flatMap((file) => [
			...foldersOfLib.map((folder) => ({
				file,
				text: `import "../lib/${folder}/thing.ts"\n`,
				refused: folder !== "config" && folder !== "formats",
			})),
			...["errors", "secret", "paths"].map((name) => ({
				file,
				text: `import "../lib/${name}.ts"\n`,
				refused: false,
			})),
			...services
				.filter((other) => other !== service)
				.map((other) => ({ file, text: `import "../${other}/queue.ts"\n`, refused: true })),
			{ file, text: 'import "../commands/restore.ts"\n', refused: true },
		]),
		...[
			"src/cli.ts",
			"src/commands/restore.ts",
			"src/lib/steps/thing.ts",
			"src/lib/config/thing.ts",
			"src/lib/errors.ts",
		].map((file) => ({
			file,
			text: `import "${"../".repeat(file.split("/").length - 1)}src/${service}/queue.ts"\n`,
			refused: true,
		})),
	])
}

// One house for each plant that a file holds: the linter goes over all of them in one go.
const houseOf = (index: number) => `house-${index}`
const reportSchema = z.object({
	diagnostics: z.array(
		z.object({ severity: z.string(), category: z.string(), location: z.object({ path: z.string() }) }),
	),
})

const cycles = "lint/suspicious/noImportCycles"

let house = ""
let refused = new Set<string>()

beforeAll(async () => {
	house = await mkdtemp(join(tmpdir(), "comfyume-house-"))
	const perFile = new Map<string, number>()
	await copyFile(join(root, ".gitignore"), join(house, ".gitignore"))
	const files = new Map<Plant, string>()
	for (const plant of plants) {
		const index = perFile.get(plant.file) ?? 0
		perFile.set(plant.file, index + 1)
		files.set(plant, join(houseOf(index), plant.file))
	}
	for (let index = 0; index < Math.max(...perFile.values()); index++) {
		await mkdir(join(house, houseOf(index)), { recursive: true })
		await copyFile(join(root, "biome.json"), join(house, houseOf(index), "biome.json"))
		await copyFile(join(root, ".gitignore"), join(house, houseOf(index), ".gitignore"))
	}
	for (const [plant, file] of files) {
		await mkdir(dirname(join(house, file)), { recursive: true })
		await writeFile(join(house, file), plant.text)
	}
	const found = await Promise.all(
		Array.from({ length: Math.max(...perFile.values()) }, (_, index) => refusedIn(houseOf(index))),
	)
	refused = new Set(found.flat())
}, 60_000)

afterAll(() => rm(house, { recursive: true, force: true }))

async function diagnosticsOf(name: string) {
	const biome = join(root, "node_modules/.bin/biome")
	const options = { cwd: join(house, name), maxBuffer: 64 * 1024 * 1024 }
	const { stdout } = await promisify(execFile)(
		biome,
		["lint", "--reporter=json", "--max-diagnostics=none", "."],
		options,
	).catch((error: { stdout: string }) => error)
	const report = reportSchema.parse(JSON.parse(stdout))
	return report.diagnostics.filter(({ severity }) => severity === "error")
}

// The plants import each other all around; cycles have a test of their own.
const refusedIn = async (name: string) =>
	(await diagnosticsOf(name))
		.filter(({ category }) => category !== cycles)
		.map(({ location }) => join(name, location.path))

test("each breach is refused, and nothing else", () => {
	const perFile = new Map<string, number>()
	const judged = plants.map((plant) => {
		const index = perFile.get(plant.file) ?? 0
		perFile.set(plant.file, index + 1)
		return { ...plant, really: refused.has(join(houseOf(index), plant.file)) }
	})
	const wrong = judged.filter(({ refused: wanted, really }) => wanted !== really)
	expect(
		wrong.map(({ file, text, really }) => `${really ? "refused" : "let through"}: ${file}: ${text.trim()}`),
	).toEqual([])
	expect(judged.filter(({ really }) => really).length).toBeGreaterThan(300)
})

test("two files that import each other are refused", async () => {
	const name = "cycle"
	await mkdir(join(house, name, "src/lib/plan"), { recursive: true })
	for (const file of ["biome.json", ".gitignore"]) await copyFile(join(root, file), join(house, name, file))
	await writeFile(
		join(house, name, "src/lib/plan/a.ts"),
		'import { b } from "./b.ts"\n\nexport const a = () => b\n',
	)
	await writeFile(
		join(house, name, "src/lib/plan/b.ts"),
		'import { a } from "./a.ts"\n\nexport const b = () => a\n',
	)
	const found = await diagnosticsOf(name)
	expect(new Set(found.map(({ category }) => category))).toEqual(new Set([cycles]))
})
