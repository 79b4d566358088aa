import { expect, test } from "vitest"
import { readInputChain, readUfwAdded, readUfwStatus, wordsToDelete } from "../../../src/lib/formats/ufw.ts"

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
80,443,3000,8080,8188:8207/tcp (v6) ALLOW IN    2001:db8:1234:5678:9abc:def0::/96 # longer than their columns
443/tcp                    LIMIT IN    Anywhere                   (log)
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
			{
				to: "80,443,3000,8080,8188:8207/tcp (v6)",
				action: "ALLOW IN",
				from: "2001:db8:1234:5678:9abc:def0::/96",
			},
			{ to: "443/tcp", action: "LIMIT IN", from: "Anywhere                   (log)" },
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

test("what the kernel does with what comes in is its policy and the chains that it asks", () => {
	const text = `-P INPUT DROP
-A INPUT -p tcp -m multiport --dports 22 -j f2b-sshd
-A INPUT -j ts-input
-A INPUT -j ufw-before-logging-input
-A INPUT -j ufw-before-input
`
	expect(readInputChain(text)).toEqual({
		policy: "DROP",
		asks: ["ts-input", "ufw-before-logging-input", "ufw-before-input"],
		accepts: [],
	})
	expect(readInputChain("-P INPUT ACCEPT\n")).toEqual({ policy: "ACCEPT", asks: [], accepts: [] })
	expect(readInputChain("")).toEqual({ policy: undefined, asks: [], accepts: [] })
})

test("a rule in INPUT itself that lets something in is no chain, and is named; the machine's own talk is left out", () => {
	const text = `-P INPUT DROP
-A INPUT -j ACCEPT
-A INPUT -p tcp -m tcp --dport 6379 -j ACCEPT
-A INPUT -i lo -j ACCEPT
-A INPUT -p udp -m udp --dport 53 -j DROP
-A INPUT -j ufw-before-input
`
	expect(readInputChain(text)).toEqual({
		policy: "DROP",
		asks: ["ufw-before-input"],
		accepts: ["-A INPUT -j ACCEPT", "-A INPUT -p tcp -m tcp --dport 6379 -j ACCEPT"],
	})
})

test("a rule is deleted by the words that ufw takes: profiles with blanks whole, routed ones by route delete", () => {
	const text = `ufw allow 'Nginx Full' comment 'the door'
ufw allow from 203.0.113.7 to any app 'Apache Secure'
ufw route allow in on eth0 out on tailscale0
`
	expect(readUfwAdded(text).map(wordsToDelete)).toEqual([
		["delete", "allow", "Nginx Full"],
		["delete", "allow", "from", "203.0.113.7", "to", "any", "app", "Apache Secure"],
		["route", "delete", "allow", "in", "on", "eth0", "out", "on", "tailscale0"],
	])
})
