// The id that ComfyUI knows an attempt at a job by: newer ones take nothing but a UUID in its canonical form.
import { createHash } from "node:crypto"

/**
 * The same for the same attempt, so that it can be found again after a restart.
 * @param submission from 1: further ones of one attempt have ids of their own
 */
export function promptIdOf(jobId: string, attempt: number, submission = 1): string {
	const name = submission === 1 ? `${jobId} ${attempt}` : `${jobId} ${attempt} ${submission}`
	const hex = createHash("sha256").update(name).digest("hex")
	// Version 8, variant 10: a UUID of one's own making.
	const variant = ((Number.parseInt(hex.slice(16, 17), 16) & 3) | 8).toString(16)
	return [
		hex.slice(0, 8),
		hex.slice(8, 12),
		`8${hex.slice(13, 16)}`,
		`${variant}${hex.slice(17, 20)}`,
		hex.slice(20, 32),
	].join("-")
}
