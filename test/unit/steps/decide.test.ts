import { describe, expect, test } from "vitest"
import { parseSnapshotId } from "../../../src/lib/artifacts/snapshot.ts"
import { treeOf } from "../../../src/lib/artifacts/tree.ts"
import { decide } from "../../../src/lib/steps/restore-archive.ts"

const snapshot = (hour: string) => {
	const name = parseSnapshotId(`20261121T${hour}0000Z-0123456789ab`)
	if (name === undefined) throw new Error("the id is well-formed")
	return name
}
const file = {
	path: "etc/x",
	type: "file",
	mode: 0o644,
	owner: "root",
	group: "root",
	sizeBytes: 1,
	digest: "00",
} as const
const live = treeOf([file])

describe("whether an artifact is restored", () => {
	const facts = {
		live,
		liveDigest: "live",
		problems: [],
		newest: { name: snapshot("06"), treeDigest: "newest" },
		lineage: undefined,
		exact: false,
		candidates: 1,
	}

	test.each<[string, Partial<Parameters<typeof decide>[0]>, "satisfied" | "needed" | "unknown"]>([
		["it differs, and nobody knows where it comes from", {}, "needed"],
		[
			"it is the newest snapshot, and a run has finished with it",
			{ liveDigest: "newest", lineage: { snapshot: snapshot("06"), treeDigest: "newest" } },
			"satisfied",
		],
		["it is the newest snapshot, but no run has finished with it", { liveDigest: "newest" }, "needed"],
		[
			"it is the newest snapshot, asked for by date",
			{ liveDigest: "newest", exact: true, lineage: { snapshot: snapshot("06"), treeDigest: "newest" } },
			"satisfied",
		],
		["it is not there", { live: treeOf([]), problems: ["there is nothing"] }, "needed"],
		[
			"it is in use since it was restored from the newest",
			{ lineage: { snapshot: snapshot("06"), treeDigest: "then" } },
			"satisfied",
		],
		[
			"it is in use since a newer snapshot than any that is left",
			{ lineage: { snapshot: snapshot("07"), treeDigest: "then" } },
			"satisfied",
		],
		[
			"it comes from an older snapshot than the newest (a cloned disk)",
			{ lineage: { snapshot: snapshot("05"), treeDigest: "live" } },
			"needed",
		],
		[
			"it is in use, and a date was asked for",
			{ lineage: { snapshot: snapshot("06"), treeDigest: "then" }, exact: true },
			"needed",
		],
		[
			"it is as it was restored from that date",
			{ lineage: { snapshot: snapshot("06"), treeDigest: "live" }, exact: true },
			"satisfied",
		],
		[
			"it misses its floor, whatever it comes from",
			{ problems: ["a key is missing"], lineage: { snapshot: snapshot("06"), treeDigest: "live" } },
			"needed",
		],
		["there is no snapshot anywhere", { newest: undefined, candidates: 0 }, "unknown"],
		[
			"it was restored from an older one because the newest was bad",
			{ lineage: { snapshot: snapshot("05"), treeDigest: "then", passedOver: snapshot("06") } },
			"satisfied",
		],
	])("%s", (_, changed, state) => {
		expect(decide({ ...facts, ...changed }).state).toBe(state)
	})
})
