import { expect, test } from "vitest"
import {
	entriesFor,
	type FstabEntry,
	hasEntry,
	readFstabLine,
	renderEntry,
	withEntry,
} from "../../../src/lib/formats/fstab.ts"

const share: FstabEntry = {
	...{ source: "nfs.example.test:/share", target: "/mnt/sfs", type: "nfs" },
	...{ options: ["nconnect=16", "nofail", "_netdev"], dump: 0, pass: 0 },
}
const line = "nfs.example.test:/share /mnt/sfs nfs nconnect=16,nofail,_netdev 0 0"
const around =
	"# installer\nUUID=made-up / ext4 errors=remount-ro 0 1\n\tLABEL=x  /mnt/sfs2 ext4 defaults 0 2\n"

test("reads fields, their escapes and what may be left out", () => {
	expect(readFstabLine("LABEL=a\\040b\t/srv/with\\040space/ ext4")).toEqual({
		...{ source: "LABEL=a b", target: "/srv/with space", type: "ext4" },
		...{ options: ["defaults"], dump: 0, pass: 0 },
	})
	for (const none of ["", "# a comment", "   #b /c ext4", "only two"])
		expect(readFstabLine(none)).toBeUndefined()
	expect(renderEntry({ ...share, target: "/srv/with space" })).toContain(" /srv/with\\040space nfs ")
})

test("an entry is put behind the others, which stay byte for byte", () => {
	expect(withEntry(around, share)).toBe(`${around}${line}\n`)
	expect(withEntry(around.trimEnd(), share)).toBe(`${around.trimEnd()}\n${line}\n`)
	expect(withEntry("", share)).toBe(`${line}\n`)
})

test("takes the place of older ones for the same mount point", () => {
	const old = "nfs.old.example.test:/old   /mnt/sfs/  nfs4 ro 0 0"
	const twice = `${old}\n${around}${old}\n/dev/vdb /mnt/scratch ext4 defaults 0 2`
	expect(withEntry(twice, share)).toBe(`${line}\n${around}/dev/vdb /mnt/scratch ext4 defaults 0 2`)
	expect(entriesFor(twice, "/mnt/sfs")).toHaveLength(2)
})

test("what means the same is left as it is written", () => {
	const same = "nfs.example.test:/share\t/mnt/sfs/\tnfs\t_netdev,nofail,nconnect=16"
	expect(hasEntry(`${around}${same}\n`, share)).toBe(true)
	expect(withEntry(`${around}${same}\n`, share)).toBe(`${around}${same}\n`)
	for (const other of [
		same.replace("=16", "=4"),
		same.replace("nofail,", ""),
		same.replace(":/share", ":/x"),
		`#${same}`,
	])
		expect(hasEntry(other, share), other).toBe(false)
})
