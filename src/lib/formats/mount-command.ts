// The command that mounts the share, as the provider's console prints it: parsed, and kept whole.

type MountCommon = {
	/** Behind `-o`, one by one: `nconnect=16`. */
	options: readonly string[]
	/** The mount point. */
	target: string
	/** As it was written; what the operator sees and what is kept in records. */
	whole: string
}

export type MountCommand =
	| (MountCommon & { filesystem: "nfs" | "nfs4"; source: { host: string; path: string } })
	/** A test's stand-in for NFS. */
	| (MountCommon & { filesystem: "bind"; source: { path: string } })

export type MountCommandProblem = { message: string; fix: string }

const example = "sudo mount -t nfs -o nconnect=16 nfs.example.test:/share /mnt/sfs"
const copyIt = `copy it as the console prints it, as in: ${example}`
// Nothing of the command ever goes through a shell, and nothing in it may look as if it would.
const plainWord = /^[A-Za-z0-9_@%+=:,./[\]-]+$/

/**
 * Reads `[sudo] mount -t nfs [-o options] host:/path /target` or `[sudo] mount --bind /path /target`.
 * @returns the parts, or what is wrong and how to write it
 */
export function parseMountCommand(
	whole: string,
): { command: MountCommand } | { problem: MountCommandProblem } {
	const wrong = (message: string, fix = copyIt) => ({ problem: { message, fix } })
	const words = whole
		.trim()
		.split(/\s+/)
		.filter((word) => word !== "")
	const strange = words.find((word) => !plainWord.test(word))
	if (strange !== undefined) return wrong(`has ${strange} in it, which no mount command needs`)
	if (words[0] === "sudo") words.shift()
	if (words.shift() !== "mount") return wrong("is not a mount command")

	const options: string[] = []
	const operands: string[] = []
	let filesystem: string | undefined
	while (words.length > 0) {
		const word = words.shift() ?? ""
		const [name, attached] = optionOf(word)
		if (name === undefined) operands.push(word)
		else if (name === "--bind" || name === "-B") filesystem = "bind"
		else if (name === "-t" || name === "-o") {
			const value = attached ?? words.shift()
			if (value === undefined) return wrong(`has nothing behind ${name}`)
			if (name === "-t") filesystem = value
			else options.push(...value.split(",").filter((option) => option !== ""))
		} else
			return wrong(`has the option ${word}, which comfyume does not know`, `leave ${word} out, or ${copyIt}`)
	}
	if (options.includes("bind")) filesystem = "bind"

	const [source, target] = operands
	if (source === undefined || target === undefined) return wrong("needs a source and a mount point")
	if (operands.length > 2)
		return wrong(`has ${operands[2]} behind the mount point`, `leave out: ${operands.slice(2).join(" ")}`)
	if (!cleanPath(target))
		return wrong(`has the mount point ${target}`, "write an absolute path, as in /mnt/sfs")

	if (filesystem === "bind") {
		if (!cleanPath(source)) return wrong(`binds ${source}`, "write an absolute path before the mount point")
		return {
			command: {
				filesystem,
				options: options.filter((option) => option !== "bind"),
				source: { path: source },
				target,
				whole: whole.trim(),
			},
		}
	}
	const remote = /^(\[[0-9a-f:]+\]|[^:[\]/]+):(\/.*)$/i.exec(source)
	if (remote === null)
		return wrong(`mounts ${source}, which is not host:/path`, "write host:/path, as the console prints it")
	const [, host = "", path = ""] = remote
	// `mount` finds NFS out by itself from `host:/path`.
	const type = filesystem ?? "nfs"
	if (type !== "nfs" && type !== "nfs4") return wrong(`mounts a file system of type ${type}`, "write -t nfs")
	return { command: { filesystem: type, options, source: { host, path }, target, whole: whole.trim() } }
}

// `-o x`, `-ox`, `--types x`, `--types=x`.
function optionOf(word: string): [name: string | undefined, attached?: string] {
	if (!word.startsWith("-")) return [undefined]
	const long: Readonly<Record<string, string>> = { "--types": "-t", "--options": "-o" }
	if (word.startsWith("--")) {
		const [name = word, ...rest] = word.split("=")
		return rest.length === 0 ? [long[name] ?? name] : [long[name] ?? name, rest.join("=")]
	}
	if (word.length > 2 && /^-[to]/.test(word)) return [word.slice(0, 2), word.slice(2)]
	return [word]
}

const cleanPath = (path: string) =>
	path.startsWith("/") && path !== "/" && !path.split("/").some((part) => part === ".." || part === ".")
