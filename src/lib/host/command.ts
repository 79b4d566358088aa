// A command is a value: a program and its arguments. Nothing in comfyume builds a shell string.

export type Command = {
	readonly program: string
	readonly args: readonly string[]
	/** Environment variables on top of the host's own. Never secrets: they would show in the audit log. */
	readonly environment?: Readonly<Record<string, string>>
	/** Secrets that the program must read from its environment. Kept out of every description. */
	readonly secretEnvironment?: Readonly<Record<string, string>>
	readonly workingDirectory?: string
	/** Milliseconds after which the program is killed and the run fails. Without it, the run's signal decides. */
	readonly timeoutMs?: number
}

/** `command("docker", "compose", "up", "--detach")` */
export function command(program: string, ...args: readonly string[]): Command {
	return { program, args }
}

/** The same command with some of its fields set. */
export function withOptions(base: Command, options: Partial<Omit<Command, "program" | "args">>): Command {
	return { ...base, ...options }
}

/** The command as a person would type it; for messages. Arguments never hold secrets, so this is safe to show. */
export function describe({ program, args }: Command): string {
	return [program, ...args].map(quoteForShell).join(" ")
}

const plainWord = /^[\w@%+=:,./-]+$/

/**
 * Quotes one word for a POSIX shell. The only quoting in comfyume; used at the edge where a protocol takes a line
 * instead of a list (SSH's exec request).
 * @throws {TypeError} for a NUL byte, which no shell can carry.
 */
export function quoteForShell(word: string): string {
	if (word.includes("\0")) throw new TypeError("a NUL byte can't be part of a command")
	return plainWord.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`
}
