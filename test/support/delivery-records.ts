// Delivery records in one JSON file: what Redis holds for the queue manager. Each step is one rename, as there each is
// one script; a process that is killed in between leaves the file as it was.
import { existsSync, readFileSync, renameSync, writeFileSync } from "node:fs"
import type {
	DeliveredFile,
	DeliveryId,
	DeliveryRecord,
	DeliveryRecords,
} from "../../src/queue-manager/outputs/records.ts"

type State = {
	records: Record<string, DeliveryRecord>
	names: Record<string, string>
	events: DeliveredFile[]
}

export type TestRecords = DeliveryRecords & { events(): DeliveredFile[] }

/** @param path the file; it need not be there */
export function fileRecords(path: string): TestRecords {
	const read = (): State =>
		existsSync(path)
			? (JSON.parse(readFileSync(path, "utf8")) as State)
			: { records: {}, names: {}, events: [] }
	const write = (state: State) => {
		writeFileSync(`${path}.new`, JSON.stringify(state))
		renameSync(`${path}.new`, path)
	}
	const keyOf = ({ job, attempt, file }: DeliveryId) => `${job}/${attempt}/${file}`
	return {
		events: () => read().events,
		find: async (id) => read().records[keyOf(id)],
		async reserve(id, record, instead) {
			const state = read()
			const key = keyOf(id)
			const present = state.records[key]
			if (present !== undefined && (present.state === "delivered" || present.filename !== instead))
				return present
			const name = `${record.user}/${record.filename}`
			if ((state.names[name] ?? key) !== key) return "taken"
			if (present !== undefined) delete state.names[`${present.user}/${present.filename}`]
			state.names[name] = key
			const reserved: DeliveryRecord = { ...record, state: "reserved" }
			state.records[key] = reserved
			write(state)
			return reserved
		},
		async complete(delivered) {
			const state = read()
			const record = state.records[keyOf(delivered)]
			if (record === undefined) throw new Error("a file was delivered under a name it didn't reserve")
			if (record.state === "delivered") return "already"
			record.state = "delivered"
			state.events.push(delivered)
			write(state)
			return "first"
		},
	}
}
