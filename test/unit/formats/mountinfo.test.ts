import { expect, test } from "vitest"
import { readMountInfo } from "../../../src/lib/formats/mountinfo.ts"

// In the kernel's form (proc(5)); addresses and names are made up.
const table = `22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
36 35 0:41 / /mnt/sfs rw,relatime shared:20 master:3 - nfs4 nfs.example.test:/share-made-up rw,vers=4.2,nconnect=16
37 22 254:16 / /mnt/with\\040blank rw - ext4 /dev/disk/by-label/a\\040b rw
38 22 0:50 /below /mnt/sfs ro - tmpfs tmpfs ro
`

test("device, place, file system and source, whatever number of optional fields stands between", () => {
	expect(readMountInfo(table)).toEqual([
		{ device: "254:1", target: "/", filesystem: "ext4", source: "/dev/vda1" },
		{ device: "0:41", target: "/mnt/sfs", filesystem: "nfs4", source: "nfs.example.test:/share-made-up" },
		{ device: "254:16", target: "/mnt/with blank", filesystem: "ext4", source: "/dev/disk/by-label/a b" },
		{ device: "0:50", target: "/mnt/sfs", filesystem: "tmpfs", source: "tmpfs" },
	])
})

test("what is no line of it is passed over", () => {
	expect(readMountInfo("")).toEqual([])
	expect(readMountInfo("made up\n36 35 0:41\n")).toEqual([])
})
