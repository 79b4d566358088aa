import { expect, test } from "vitest"
import { lockHolderOf, readOsRelease, readPackageStatuses } from "../../../src/lib/formats/dpkg.ts"

test("reads which packages are there; an installed one counts, whatever another architecture has", () => {
	const found = readPackageStatuses(
		"installed jq 1.6-2.1\nconfig-files zsh 5.9-4\ninstalled libc6 2.36\nconfig-files libc6 2.36\nnot-installed unzip \n",
	)
	expect([...found.values()].map(({ name, status }) => `${name} ${status}`)).toEqual([
		"jq installed",
		"zsh config-files",
		"libc6 installed",
		"unzip not-installed",
	])
	expect(found.get("jq")?.version).toBe("1.6-2.1")
})

test.each([
	[
		"apt's",
		"E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 812 (unattended-upgr)\nE: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?",
		{ lock: "/var/lib/dpkg/lock-frontend", processId: 812, program: "unattended-upgr" },
	],
	[
		"apt's, where it doesn't know who",
		"E: Could not get lock /var/lib/apt/lists/lock. - open (11: Resource temporarily unavailable)",
		{ lock: "/var/lib/apt/lists/lock" },
	],
	[
		"dpkg's",
		"dpkg: error: dpkg frontend lock was locked by another process with pid 44\nNote: removing the lock file is always wrong",
		{ lock: "dpkg frontend lock", processId: 44 },
	],
])("%s word of a lock names its holder", (_, complaint, holder) => {
	expect(lockHolderOf(complaint)).toEqual(holder)
})

test("another failure is no lock", () => {
	expect(lockHolderOf("E: Unable to locate package jq")).toBeUndefined()
	expect(lockHolderOf("E: Failed to fetch http://x/y  503  Service Unavailable")).toBeUndefined()
})

test("reads the system's name, with quotes or without", () => {
	expect(readOsRelease('ID=ubuntu\nID_LIKE=debian\nVERSION_CODENAME="noble"\n')).toEqual({
		id: "ubuntu",
		codename: "noble",
	})
	expect(readOsRelease("")).toEqual({ id: "", codename: "" })
})
