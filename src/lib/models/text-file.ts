// A text file that the operator names: a manifest, an extra_model_paths.yaml.
import { readFile, stat } from "node:fs/promises"
import { dirname } from "node:path"
import { codeOf, exitCodes, OperatorError, systemError } from "../errors.ts"
import { quoteForShell } from "../host/command.ts"

/**
 * @param what in the operator's words, as in `the manifest`
 * @throws {OperatorError} (2) when it can't be read, is no regular file (a pipe would be waited for for ever), or is
 * longer than a file of its kind can be
 */
export async function readTextFile(file: string, what: string, longestBytes: number): Promise<string> {
	const refused = (message: string, hint: string, cause?: unknown) =>
		new OperatorError(message, { exitCode: exitCodes.usage, hint, cause })
	const look = `ls -l ${quoteForShell(file)}`
	try {
		const facts = await stat(file)
		if (!facts.isFile()) throw refused(`${what} ${file} is no regular file`, look)
		if (facts.size > longestBytes) throw refused(`${file} is too large for ${what}`, look)
		return await readFile(file, "utf8")
	} catch (error) {
		if (error instanceof OperatorError) throw error
		if (codeOf(error) === "ENOENT")
			throw refused(`${what} ${file} is not there`, `ls ${quoteForShell(dirname(file))}`, error)
		throw refused(systemError(error, `reading ${what} ${file}`).message, look, error)
	}
}
