// The kernel's table of what is mounted (proc(5), /proc/PID/mountinfo).

export type Mount = {
	/** The device's number, as in `254:16`. */
	device: string
	target: string
	/** As in `nfs4`. */
	filesystem: string
	/** As in `/dev/vdb`, or `host:/path`. */
	source: string
}

/** In the order in which they were mounted: of several with one target the last one is seen. Pure. */
export function readMountInfo(text: string): Mount[] {
	return text.split("\n").flatMap((line) => {
		// Between the two halves stands any number of optional fields, and then a dash.
		const [before = "", after] = line.split(" - ")
		const [, , device = "", , target = ""] = before.split(" ")
		if (after === undefined || target === "") return []
		const [filesystem = "", source = ""] = after.split(" ")
		return [{ device, target: decoded(target), filesystem: decoded(filesystem), source: decoded(source) }]
	})
}

const decoded = (field: string) =>
	field.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))
