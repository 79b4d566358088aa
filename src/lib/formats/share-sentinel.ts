// The file `ENVIRONMENT` in the root of a share: which environments the volume may serve. One volume looks like another
// until it is written to.

export const sentinelName = "ENVIRONMENT"

/** The environments that it names, separated by white space; what stands behind `#` is for people. */
export function readSentinel(text: string): string[] {
	return text
		.split("\n")
		.flatMap((line) => line.replace(/#.*/, "").split(/\s+/))
		.filter((word) => word !== "")
}

/** For a share that serves one environment. */
export const renderSentinel = (environment: string) => `${environment}\n`
