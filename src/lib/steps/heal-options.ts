// The options by which models are put right, the same for every command that does it.
import { isAbsolute } from "node:path"
import { exitCodes, OperatorError } from "../errors.ts"
import { quoteForShell } from "../host/command.ts"

export type HealOptions = {
	fromOrigin?: boolean
	tempDir?: string
	/** Bytes per second. */
	limit?: number
}

/** Flags, descriptions, and how a value is read. */
export const healOptions: readonly (readonly [
	flags: string,
	description: string,
	parse?: (text: string) => number | string,
])[] = [
	[
		"--from-origin",
		"models that no other source has right also from their source URLs (HF_TOKEN for gated ones)",
	],
	[
		"--temp-dir <directory>",
		"fetch models to this directory of the host, and copy them when they are proven",
		parseHostPath,
	],
	["--limit <rate>", "fetch models at no more than this per second, as in 20MiB", parseRate],
]

/** The same options as words, for a host elsewhere and for commands to type next. */
export const wordsOfHeal = ({ fromOrigin, tempDir, limit }: HealOptions): string[] => [
	...(fromOrigin === true ? ["--from-origin"] : []),
	...(tempDir === undefined ? [] : ["--temp-dir", tempDir]),
	...wordsOfLimit(limit),
]

/** The manifest that was named, as words. */
export const wordsOfManifest = (named: string | undefined): string[] =>
	named === undefined ? [] : ["--manifest", named]

/** The limit as words. */
export const wordsOfLimit = (bytesPerSecond: number | undefined): string[] =>
	bytesPerSecond === undefined ? [] : ["--limit", `${bytesPerSecond}B`]

/** What a shell takes for these words. */
export const spokenWords = (words: readonly string[]): string => words.map(quoteForShell).join(" ")

/** @throws {OperatorError} (2) for a path that is relative: the host has no directory that the operator is in */
function parseHostPath(text: string): string {
	if (isAbsolute(text)) return text
	throw new OperatorError(`--temp-dir ${text} is a directory of the host`, {
		exitCode: exitCodes.usage,
		hint: "write it with a leading /",
	})
}

const units = new Map([
	["", 1],
	["k", 1000],
	["ki", 1024],
	["m", 1000 ** 2],
	["mi", 1024 ** 2],
	["g", 1000 ** 3],
	["gi", 1024 ** 3],
	["t", 1000 ** 4],
	["ti", 1024 ** 4],
])

/** `20GiB` -> 21474836480; undefined for what is no size. */
export function parseBytes(text: string): number | undefined {
	const [, number, unit = ""] = /^(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?$/i.exec(text) ?? []
	const bytes = Math.floor(Number(number) * (units.get(unit.toLowerCase()) ?? Number.NaN))
	return Number.isFinite(bytes) ? bytes : undefined
}

/**
 * `20MiB` -> 20971520.
 * @throws {OperatorError} (2) for what is no rate
 */
export function parseRate(text: string): number {
	const rate = parseBytes(text.replace(/\/s$/i, ""))
	// Less wouldn't end before the watchdog takes it for a stalled connection.
	if (rate !== undefined && rate >= 1024) return rate
	throw new OperatorError(`${text} is not a rate of at least 1 KiB per second`, {
		exitCode: exitCodes.usage,
		hint: "write it as in --limit 20MiB",
	})
}
