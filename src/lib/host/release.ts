// The release of comfyume on a host: `/opt/comfyume/<digest>`, which root alone can have put there or changed. The
// digest is that of SHA256SUMS, which holds the digest of every other file.
import { createHash, randomBytes } from "node:crypto"
import { createReadStream, createWriteStream } from "node:fs"
import { mkdtemp, rm } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { pipeline } from "node:stream/promises"
import { createGzip, createZstdDecompress } from "node:zlib"
import { exitCodes, OperatorError } from "../errors.ts"
import type { Command } from "./command.ts"
import { command } from "./command.ts"
import { lastLines } from "./failures.ts"
import type { Host } from "./host.ts"

type ReleaseArch = "x64" | "arm64"

/** What `npm run release` wrote beside its archive, and where the archive lies here. */
export type ReleaseArchive = {
	version: string
	arch: ReleaseArch
	/** sha256 of the release's SHA256SUMS. */
	digest: string
	/** Of the archive. */
	sizeBytes: number
	/** Of the archive. */
	sha256: string
	/** The `.tar.zst` on this machine. */
	file: string
}

export type InstalledRelease = {
	/** The launcher on the host. */
	executable: string
	archive: ReleaseArchive
	/** False when it was there already. */
	installed: boolean
}

const archOf: Readonly<Record<string, ReleaseArch>> = { x86_64: "x64", aarch64: "arm64" }

// As root, and never where somebody else could swap a file between its check and its start.
const common = `set -u
fail() { printf '%s\\n' "$*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "not root"
trusted_chain() {
	at=$(readlink -m -- "$1")
	while :; do
		if [ -e "$at" ]; then
			set -- $(stat -c '%u %a' -- "$at")
			[ "$1" = 0 ] && [ $((0$2 & 022)) = 0 ] || fail "$at can be changed by others than root"
		fi
		[ "$at" = / ] && break
		at=$(dirname -- "$at")
	done
}
# Node is 127 MB: openssl reads it seven times as fast. NUL-separated names in, sums out.
sums() { if command -v openssl >/dev/null; then xargs -0 openssl dgst -sha256 -r; else xargs -0 sha256sum; fi; }
# $1 directory, $2 digest; says on stdout what is wrong
verify() (
	cd -- "$1" || exit 1
	strange=$(find . \\( ! -user 0 -o -perm /022 -o ! -type f ! -type d \\) -print -quit) || exit 1
	[ -z "$strange" ] || { echo "$strange is not root's alone"; exit 1; }
	[ -f SHA256SUMS ] || { echo "SHA256SUMS is missing"; exit 1; }
	[ "$(sha256sum <SHA256SUMS | cut -c 1-64)" = "$2" ] || { echo "SHA256SUMS is another"; exit 1; }
	listed=$(LC_ALL=C sort SHA256SUMS)
	there=$(find . -type f ! -path ./SHA256SUMS -print0 | sums | sed 's/^\\([0-9a-f]*\\) [ *]\\.[/]/\\1  /' | LC_ALL=C sort)
	[ "$listed" = "$there" ] && exit 0
	echo "not as SHA256SUMS has it: $(printf '%s\\n%s\\n' "$listed" "$there" | LC_ALL=C sort | uniq -u | cut -c 67- | sort -u | head -n 5 | tr '\\n' ' ')"
	exit 1
)
`

// $1 base, $2 the digest for x86_64, $3 for aarch64, $4 a random word. One round trip when all is in place.
const lookScript = `${common}
machine=$(uname -m)
case $machine in x86_64) digest=$2 ;; aarch64) digest=$3 ;; *) digest= ;; esac
echo "machine $machine"
[ -n "$digest" ] || exit 0
trusted_chain "$1/$digest"
if [ -d "$1/$digest" ]; then
	if wrong=$(verify "$1/$digest" "$digest"); then echo "state verified"; exit 0; fi
	echo "state bad $wrong"
else
	echo "state missing"
fi
umask 022
mkdir -p -- "$1" || exit 1
trusted_chain "$1"
find "$1" -maxdepth 1 -name '.incoming-*' -mmin +1440 -exec rm -rf -- {} +
mkdir -m 700 -- "$1/.incoming-$4" || exit 1
if command -v zstd >/dev/null; then echo "unpacks zstd"; else echo "unpacks gzip"; fi
`

// $1 base, $2 digest, $3 the random word, $4 the archive's sha256, $5 its compression
const installScript = `${common}
incoming=$1/.incoming-$3
trap 'rm -rf -- "$incoming"' EXIT
[ "$(sha256sum <"$incoming/archive" | cut -c 1-64)" = "$4" ] || fail "the archive arrived with another sha256"
mkdir -m 755 -- "$incoming/tree" || exit 1
umask 022
tar --extract "--$5" --no-same-owner --no-same-permissions --file "$incoming/archive" --directory "$incoming/tree" || exit 1
wrong=$(verify "$incoming/tree" "$2") || fail "the unpacked release is not what it should be: $wrong"
sync -f -- "$incoming/tree"
if [ -e "$1/$2" ] && ! verify "$1/$2" "$2" >/dev/null; then mv -T -- "$1/$2" "$1/$2.bad-$3" || exit 1; fi
if ! mv -T -- "$incoming/tree" "$1/$2" 2>/dev/null; then
	# Another run may have been faster.
	wrong=$(verify "$1/$2" "$2") || fail "$1/$2 can't be replaced: $wrong"
fi
trusted_chain "$1/$2"
sync -- "$1"
`

/**
 * Sees to it that the release stands on the host and is what it should be, and gives its launcher. Asks once when all
 * is in place; verified by root, directory by directory, right before its use. The host must run commands as root.
 * @param base where releases stand; no directory above it may be writable by others than root
 * @throws {OperatorError} `refusedByGuard` when others could change the release, `usage` when there is none for that
 * machine, and what the host throws
 */
export async function ensureRelease(
	host: Host,
	archives: readonly ReleaseArchive[],
	base = "/opt/comfyume",
): Promise<InstalledRelease> {
	const digestFor = (arch: ReleaseArch) => archives.find((archive) => archive.arch === arch)?.digest ?? ""
	const word = randomBytes(6).toString("hex")
	const look = await runScript(host, lookScript, base, digestFor("x64"), digestFor("arm64"), word)
	const said = (what: string) => new RegExp(`^${what} (.*)$`, "m").exec(look)?.[1] ?? ""

	const archive = archives.find(({ arch }) => arch === archOf[said("machine")])
	if (archive === undefined)
		throw new OperatorError(`there is no release of comfyume for ${host.name}, which is ${said("machine")}`, {
			exitCode: exitCodes.usage,
			hint: `npm run release -- --arch ${archOf[said("machine")] ?? "x64"}`,
		})
	const executable = `${base}/${archive.digest}/bin/comfyume`
	if (said("state") === "verified") return { executable, archive, installed: false }

	if (said("unpacks") === "zstd") {
		await host.put(archive.file, `${base}/.incoming-${word}/archive`, { mode: 0o600 })
		await runScript(host, installScript, base, archive.digest, word, archive.sha256, "zstd")
		return { executable, archive, installed: true }
	}
	// A bare Debian has gzip and no zstd.
	const directory = await mkdtemp(join(tmpdir(), "comfyume-release-"))
	try {
		const file = join(directory, "archive.tar.gz")
		await pipeline(
			createReadStream(archive.file),
			createZstdDecompress(),
			createGzip({ level: 6 }),
			createWriteStream(file, { mode: 0o600 }),
		)
		await host.put(file, `${base}/.incoming-${word}/archive`, { mode: 0o600 })
		await runScript(host, installScript, base, archive.digest, word, await sha256Of(file), "gzip")
	} finally {
		await rm(directory, { recursive: true, force: true })
	}
	return { executable, archive, installed: true }
}

async function runScript(host: Host, text: string, ...parameters: string[]): Promise<string> {
	const script: Command = command("sh", "-s", "--", ...parameters)
	const { exitCode, stdout, stderr } = await host.execute(script, { stdin: text, allowedExitCodes: [1] })
	if (exitCode === 0) return stdout
	const guard = /can be changed by others|not root$/m.test(stderr)
	throw new OperatorError(`the release of comfyume on ${host.name}: ${lastLines(stderr)}`, {
		...(guard ? { exitCode: exitCodes.refusedByGuard } : {}),
		...(/No space left/.test(stderr) ? { exitCode: exitCodes.noSpace, hint: "df -h /opt" } : {}),
	})
}

async function sha256Of(file: string): Promise<string> {
	const digest = createHash("sha256")
	for await (const chunk of createReadStream(file, { highWaterMark: 1024 * 1024 })) digest.update(chunk)
	return digest.digest("hex")
}
