// Colors, or none. The one place that knows chalk, which by itself would ignore NO_COLOR on a terminal.
import { Chalk } from "chalk"

export type Paint = Readonly<
	Record<"good" | "bad" | "warning" | "faint" | "strong", (text: string) => string>
>

/** @param color whether the terminal shows colors; without, every text comes back as it is */
export function paint(color: boolean): Paint {
	const chalk = new Chalk({ level: color ? 1 : 0 })
	return { good: chalk.green, bad: chalk.red, warning: chalk.yellow, faint: chalk.dim, strong: chalk.bold }
}
