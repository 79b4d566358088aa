// What must be remembered for each file to be delivered exactly once, and by which steps. Redis holds it; each function
// is one atomic step there.

/** A file of an attempt. */
export type DeliveryId = {
	job: string
	/** The attempt's directory: `a1`. */
	attempt: string
	file: string
}

export type DeliveryRecord = {
	state: "reserved" | "delivered"
	user: string
	node: string
	/** In the user's directory. */
	filename: string
}

export type DeliveredFile = DeliveryId & {
	user: string
	node: string
	filename: string
	sizeBytes: number
	digest: string
}

export type DeliveryRecords = {
	find(id: DeliveryId): Promise<DeliveryRecord | undefined>
	/**
	 * Takes a name in the user's directory for a file. A file holds at most one name, and a name belongs to at most one
	 * file: two files of one content under one name would otherwise both count as delivered.
	 * @param instead the file's present name, where that turned out to be in use; it is given up
	 * @returns what holds for the file afterwards, or `taken` when the name belongs to another file
	 */
	reserve(
		id: DeliveryId,
		record: Omit<DeliveryRecord, "state">,
		instead?: string,
	): Promise<DeliveryRecord | "taken">
	/** Marks a file delivered and publishes the event for it, in one step, and both at most once. */
	complete(delivered: DeliveredFile): Promise<"first" | "already">
}
