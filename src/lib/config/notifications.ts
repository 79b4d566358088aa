// Whom to tell of a run whose configuration is wrong elsewhere: that failure must not be the one nobody hears of.
import { parseDocument } from "yaml"
import { type NotificationsConfiguration, notificationsSchema } from "./environment.ts"
import { notificationRules } from "./rules.ts"

/** What can be made out of a configuration that can't be used. */
export type Salvaged = { host: string; notifications: NotificationsConfiguration }

/**
 * Reads one environment's notifications, and its host's name, from a text that may have any other mistake. Undefined
 * where they themselves are wrong, or there are none. Pure.
 * @param host its name, where the environment has several
 */
export function salvageNotifications(
	text: string,
	environmentName: string,
	host?: string,
): Salvaged | undefined {
	try {
		const value: unknown = parseDocument(text, { version: "1.2", merge: true, prettyErrors: false }).toJS()
		const environment = blockOf(blockOf(blockOf(value)["environments"])[environmentName])
		const parsed = notificationsSchema.safeParse(environment["notifications"])
		if (!parsed.success || notificationRules(environment, environmentName).length > 0) return undefined
		const hosts = Array.isArray(environment["hosts"]) ? environment["hosts"].map(blockOf) : []
		const name = host ?? hosts[0]?.["name"]
		if (typeof name !== "string" || !/^[a-z0-9-]{1,63}$/.test(name)) return undefined
		const { textfiles, ...others } = parsed.data
		// Where a directory stands in for the machine, its files don't lie in this one's places.
		const standsIn = hosts.some(({ connection }) => connection === "directory")
		return { host: name, notifications: standsIn || !textfiles ? others : parsed.data }
	} catch {
		return undefined
	}
}

const blockOf = (value: unknown): Readonly<Record<string, unknown>> =>
	typeof value === "object" && value !== null && !Array.isArray(value)
		? (value as Record<string, unknown>)
		: {}
