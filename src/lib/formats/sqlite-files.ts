// Names of SQLite databases, and of what SQLite keeps beside one while it is in use.

export const companionEndings = ["-journal", "-wal", "-shm"] as const

export const isDatabaseName = (path: string) => /\.(db|sqlite3?)$/.test(path)

/** The names that databases among these have, or could have, companions under. */
export function companionsAmong(names: readonly string[]): ReadonlySet<string> {
	const databases = names.filter(isDatabaseName)
	return new Set(databases.flatMap((name) => companionEndings.map((ending) => `${name}${ending}`)))
}
