// Reading what Redis gives back.

/** Redis gives a hash as a flat list of names and values. */
export function mapOf(flat: readonly string[]): Map<string, string> {
	const fields = new Map<string, string>()
	for (let index = 0; index < flat.length; index += 2) {
		fields.set(String(flat[index]), String(flat[index + 1]))
	}
	return fields
}
