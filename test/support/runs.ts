// How often random tests run: few times in CI, many at night.

/**
 * The number of runs of a property or a schedule. `COMFYUME_TEST_RUNS` multiplies it: 35 makes a thousand schedules of chaos.
 * @param usual how many a run of `npm test` makes
 */
export function runs(usual: number): number {
	const factor = Number(process.env["COMFYUME_TEST_RUNS"] ?? "1")
	return Math.max(1, Math.round(usual * (Number.isFinite(factor) && factor > 0 ? factor : 1)))
}
