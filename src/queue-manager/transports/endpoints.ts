// The serverless endpoints: one of them is active and gets the new jobs; what runs on the others drains. How many jobs
// each may hold is counted here, since a load balancer tells nobody how many replicas stand behind it.
import { exitCodes, OperatorError } from "../../lib/errors.ts"
import type { Secret } from "../../lib/secret.ts"
import { type ComfyuiClient, comfyuiClient } from "./comfyui-client.ts"

export type EndpointOptions = { name: string; url: string; key: Secret | undefined; slots: number }

export type Endpoint = {
	name: string
	slots: number
	client: ComfyuiClient
	/** Without a slash at its end. */
	url: string
	key: Secret | undefined
}

export type EndpointState = { name: string; isActive: boolean; running: number; slots: number }

export type Endpoints = {
	active(): Endpoint
	find(name: string): Endpoint | undefined
	/** New jobs go there from now on. @throws {OperatorError} for a name that isn't configured */
	switchTo(name: string): void
	states(): EndpointState[]
	/** Counts a job, once; false when the endpoint is full. */
	take(endpoint: string, key: string, options?: { evenIfFull?: boolean }): boolean
	release(key: string): void
}

/** @param active the name of the one that gets new jobs at first */
export function openEndpoints(options: readonly EndpointOptions[], active: string): Endpoints {
	const endpoints = new Map(
		options.map(({ name, url: given, key, slots }) => {
			const url = given.replace(/\/+$/, "")
			return [name, { name, slots, url, key, client: comfyuiClient({ name, url, key }) }]
		}),
	)
	const holders = new Map<string, string>()
	const running = (name: string) => [...holders.values()].filter((holder) => holder === name).length
	const named = (name: string): Endpoint => {
		const endpoint = endpoints.get(name)
		if (endpoint !== undefined) return endpoint
		throw new OperatorError(`there is no endpoint ${JSON.stringify(name.slice(0, 100))}`, {
			hint: `one of: ${[...endpoints.keys()].join(", ")}`,
			exitCode: exitCodes.usage,
		})
	}
	let activeName = named(active).name
	return {
		active: () => named(activeName),
		find: (name) => endpoints.get(name),
		switchTo(name) {
			activeName = named(name).name
		},
		states: () =>
			[...endpoints.values()].map(({ name, slots }) => ({
				name,
				isActive: name === activeName,
				running: running(name),
				slots,
			})),
		take(name, key, { evenIfFull = false } = {}) {
			if (holders.get(key) === name) return true
			if (!evenIfFull && running(name) >= named(name).slots) return false
			holders.set(key, name)
			return true
		},
		release: (key) => void holders.delete(key),
	}
}
