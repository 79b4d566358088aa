import { expect, test } from "vitest"
import { readUfwAdded, readUfwStatus } from "../../../src/lib/formats/ufw.ts"

const verbose = `Status: active
Logging: on (low)
Default: deny (incoming), allow (outgoing), disabled (routed)
New profiles: skip

To                         Action      From
--                         ------      ----
22/tcp                     LIMIT IN    Anywhere
80,443/tcp (Nginx Full)    ALLOW IN    Anywhere                   # the door
8188                       ALLOW IN    203.0.113.0/24
Anywhere                   DENY IN     203.0.113.9
22/tcp (v6)                LIMIT IN    Anywhere (v6)

53                         ALLOW OUT   Anywhere
`

test("the table in force is read row by row, comments and profiles included", () => {
	expect(readUfwStatus(verbose)).toEqual({
		active: true,
		incoming: "deny",
		rows: [
			{ to: "22/tcp", action: "LIMIT IN", from: "Anywhere" },
			{ to: "80,443/tcp (Nginx Full)", action: "ALLOW IN", from: "Anywhere" },
			{ to: "8188", action: "ALLOW IN", from: "203.0.113.0/24" },
			{ to: "Anywhere", action: "DENY IN", from: "203.0.113.9" },
			{ to: "22/tcp (v6)", action: "LIMIT IN", from: "Anywhere (v6)" },
			{ to: "53", action: "ALLOW OUT", from: "Anywhere" },
		],
	})
})

test("an inactive firewall has no rows and no default", () => {
	expect(readUfwStatus("Status: inactive\n")).toEqual({ active: false, incoming: undefined, rows: [] })
})

test("rules come as the words of the commands that made them, without their comments", () => {
	const text = `Added user rules (see 'ufw status' for running firewall):
ufw limit 22/tcp
ufw allow 80/tcp comment 'it''s the door'
ufw allow from 203.0.113.7 to any port 22 proto tcp
`
	expect(readUfwAdded(text)).toEqual([
		["limit", "22/tcp"],
		["allow", "80/tcp"],
		["allow", "from", "203.0.113.7", "to", "any", "port", "22", "proto", "tcp"],
	])
	expect(readUfwAdded("Added user rules (see 'ufw status' for running firewall):\n(None)\n")).toEqual([])
})
