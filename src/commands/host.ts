// comfyume host
import { Command } from "commander"
import type { CommandRun } from "../lib/ui/surroundings.ts"

export function create(_run: CommandRun): Command {
	return new Command("host")
}
