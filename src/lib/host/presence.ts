// Whether something is there, on this machine's own disk. Without a program for each question.
import { access, constants, stat } from "node:fs/promises"

const passes = async (asked: Promise<unknown>): Promise<boolean> => {
	try {
		await asked
		return true
	} catch {
		return false
	}
}

/** As `test -e`. */
export const isThere = (path: string): Promise<boolean> => passes(stat(path))

/** As `test -d`. */
export const isDirectory = async (path: string): Promise<boolean> =>
	(await stat(path).catch(() => undefined))?.isDirectory() === true

/** As `test -x`. */
export const isExecutable = (path: string): Promise<boolean> => passes(access(path, constants.X_OK))
