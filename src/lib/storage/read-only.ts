// A store under a dry run.
import { exitCodes, OperatorError } from "../errors.ts"
import type { ObjectStore } from "./object-store.ts"

const changing = new Set<PropertyKey>(["put", "setAside"])

/** The same store, on which every change throws. What `--dry-run` works with. */
export function readOnlyStore<S extends ObjectStore>(store: S): S {
	return new Proxy(store, {
		get(target, property) {
			const value = Reflect.get(target, property, target)
			if (changing.has(property) && typeof value === "function")
				return async (key: string) => {
					throw new OperatorError(
						`dry run: ${String(property)} ${key} in ${target.name} was attempted, and a dry run changes nothing`,
						{ exitCode: exitCodes.bug, hint: "this is a bug in a check; please report it" },
					)
				}
			return typeof value === "function" ? value.bind(target) : value
		},
	})
}
