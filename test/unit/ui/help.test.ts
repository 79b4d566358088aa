import { expect, test } from "vitest"
import { exitStatusHelp } from "../../../src/lib/ui/help.ts"

test("help ends with each exit code once, in order, with its meaning", () => {
	expect(exitStatusHelp([130, 2, 0, 2])).toBe(
		"\nExit status:\n    0  done\n    2  usage or configuration\n  130  interrupted",
	)
})
