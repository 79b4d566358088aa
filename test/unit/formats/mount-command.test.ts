import { describe, expect, test } from "vitest"
import { parseMountCommand } from "../../../src/lib/formats/mount-command.ts"

const printed = "sudo mount -t nfs -o nconnect=16 nfs.example.test:/CLONESFS-Model-Vault-xxxx /mnt/sfs"

describe("a mount command", () => {
	test("as the console prints it is taken apart and kept whole", () => {
		expect(parseMountCommand(printed)).toEqual({
			command: {
				filesystem: "nfs",
				options: ["nconnect=16"],
				source: { host: "nfs.example.test", path: "/CLONESFS-Model-Vault-xxxx" },
				target: "/mnt/sfs",
				whole: printed,
			},
		})
	})

	test.each([
		["without sudo", "mount -t nfs4 nfs.example.test:/x /mnt/sfs", []],
		[
			"with options that touch each other",
			"mount -tnfs4 -onconnect=16,ro nfs.example.test:/x /mnt/sfs",
			["nconnect=16", "ro"],
		],
		[
			"with long options",
			"mount --types=nfs4 --options nconnect=16 nfs.example.test:/x /mnt/sfs",
			["nconnect=16"],
		],
		["with options at its end", "mount -t nfs4 nfs.example.test:/x /mnt/sfs -o nconnect=16", ["nconnect=16"]],
		["with two -o", "mount -t nfs4 -o ro -o nconnect=16 nfs.example.test:/x /mnt/sfs", ["ro", "nconnect=16"]],
	])("%s means the same", (_, text, options) => {
		expect(parseMountCommand(text)).toMatchObject({
			command: {
				filesystem: "nfs4",
				options,
				source: { host: "nfs.example.test", path: "/x" },
				target: "/mnt/sfs",
			},
		})
	})

	test("may name its server by IPv6 address", () => {
		expect(parseMountCommand("mount -t nfs [2001:db8::1]:/x /mnt/sfs")).toMatchObject({
			command: { source: { host: "[2001:db8::1]", path: "/x" } },
		})
	})

	test.each(["mount --bind /srv/share /mnt/sfs", "mount -o bind /srv/share /mnt/sfs"])(
		"may be a bind mount: %s",
		(text) => {
			expect(parseMountCommand(text)).toMatchObject({
				command: { filesystem: "bind", options: [], source: { path: "/srv/share" }, target: "/mnt/sfs" },
			})
		},
	)

	test.each([
		["", /not a mount command/],
		["umount /mnt/sfs", /not a mount command/],
		["mount -t nfs nfs.example.test:/x", /a source and a mount point/],
		["mount -t nfs nfs.example.test /mnt/sfs", /not host:\/path/],
		["mount -t nfs nfs.example.test:x /mnt/sfs", /not host:\/path/],
		["mount -t nfs nfs.example.test:/x mnt/sfs", /mount point mnt\/sfs/],
		["mount -t nfs nfs.example.test:/x /", /mount point \//],
		["mount -t nfs nfs.example.test:/x /mnt/../etc", /mount point/],
		["mount -t ext4 nfs.example.test:/x /mnt/sfs", /type ext4/],
		["mount -t nfs nfs.example.test:/x /mnt/sfs /mnt/other", /behind the mount point/],
		["mount --move a:/x /mnt/sfs", /the option --move/],
		["mount -t nfs nfs.example.test:/x /mnt/sfs -o", /nothing behind -o/],
		["mount -t nfs nfs.example.test:/x /mnt/sfs; rm -rf /", /no mount command needs/],
		["mount -t nfs nfs.example.test:/$(id) /mnt/sfs", /no mount command needs/],
	])("is refused with reason and fix: %s", (text, reason) => {
		const parsed = parseMountCommand(text)
		expect(parsed).toMatchObject({ problem: { message: expect.stringMatching(reason) } })
		expect("problem" in parsed && parsed.problem.fix.length).toBeGreaterThan(5)
	})
})
