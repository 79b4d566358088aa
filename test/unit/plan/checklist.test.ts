import { expect, test } from "vitest"
import { checklistTable } from "../../../src/lib/plan/reporters/checklist.ts"

const line = (step: string, outcome: "satisfied" | "failed" | "blocked", asked: string, because: string) => ({
	...{ event: "step" as const, step, outcome, asked, because },
	...{ durationMs: 0, version: 1 as const, at: "2026-11-27T07:00:00.000Z" },
})
const lines = [
	line("firewall", "satisfied", "ufw status verbose", "active: 22/tcp limited, and nothing else"),
	line("door", "failed", "https://workshop.example.test: /, /health", "/health 502, not 200"),
	line("users", "blocked", "each one's page", "waits for door, which failed"),
]

test("what is wrong comes first, then what waits for it, then what is right", () => {
	const table = checklistTable(lines, 120)
	expect(table[0]).toMatch(/^line +asked +answered$|^line .*asked .*answered$/)
	expect(table.slice(1).map((text) => text.split(" ")[0])).toEqual(["door", "users", "firewall"])
	expect(table[1]).toMatch(/WRONG.*https:\/\/workshop.example.test.*\/health 502, not 200$/)
})

test.each([80, 40])("nothing is wider than %i columns, and nothing is lost", (width) => {
	const table = checklistTable(lines, width)
	for (const text of table) expect(text.length).toBeLessThanOrEqual(width)
	const whole = table.join(" ").replaceAll(/\s+/g, " ")
	for (const word of ["door", "WRONG", "502", "waits", "firewall", "limited"]) expect(whole).toContain(word)
})
