// A strict S3 server for tests and the demo: it verifies signatures and digests, keeps R2's rules, and breaks on
// demand. It needs nothing but Node.
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import { createServer as createSecureServer } from "node:https"
import type { AddressInfo } from "node:net"
import { type Fault, type FaultHandle, findFault, type PlannedFault } from "./faults.ts"
import { handle, type LogEntry, type ServerState } from "./handler.ts"
import { openObjects, type StoredObjects } from "./objects.ts"

export type { Fault, FaultAction, FaultHandle } from "./faults.ts"
export type { LogEntry } from "./handler.ts"

export type S3Credential = {
	accessKeyId: string
	secretAccessKey: string
	/** Operations that this key pair may not do. */
	denies?: readonly string[]
}

export type S3ServerOptions = {
	buckets: readonly string[]
	credentials: readonly S3Credential[]
	/** Objects lie in this directory and outlive the server; in memory without it. */
	directory?: string
	/** A free port without it. */
	port?: number
	/** Loopback unless told otherwise; the address of a test world, for its instances. */
	address?: string
	/** Certificate and key: then it speaks TLS, as `localhost`. */
	tls?: { cert: string; key: string }
	/** The only region that signatures may name. */
	region?: string
	/** R2 says 5 MiB; tests of multipart uploads lower it. */
	smallestPartBytes?: number
	/** R2 gives up to 1000 keys a page. */
	largestPage?: number
	/** What the server thinks the time is. */
	now?: () => Date
	/** Takes `UNSIGNED-PAYLOAD` and unsigned trailers although the connection is not encrypted. */
	allowUnsignedPayload?: boolean
	/**
	 * What becomes of a request to delete an object. `denied` (without it): refused to everybody. `locked`: the bucket's lock
	 * refuses, as R2's does, also to overwrite. `versioned`: a marker hides the object. `allowed`: it is gone.
	 */
	deletes?: "denied" | "locked" | "versioned" | "allowed"
	/** Ignores `If-None-Match` when a multipart upload is completed, as some servers do, or refuses it with 501. */
	conditionalComplete?: "honoured" | "ignored" | "refused"
}

export type S3Server = {
	readonly endpoint: string
	/** Every request, in the order in which they ended. */
	readonly log: readonly LogEntry[]
	/** What is stored, to look at and to tamper with. */
	readonly objects: StoredObjects
	/** Breaks the requests that match, from now on. */
	fault(fault: Fault): FaultHandle
	/** From now on these keys are unknown. */
	revoke(accessKeyId: string): void
	close(): Promise<void>
	[Symbol.asyncDispose](): Promise<void>
}

/** Starts the server; resolves when it takes requests. */
export async function startS3Server(options: S3ServerOptions): Promise<S3Server> {
	const objects = await openObjects(options.buckets, options.directory)
	const faults: PlannedFault[] = []
	const state: ServerState = {
		objects,
		credentials: new Map(options.credentials.map((credential) => [credential.accessKeyId, credential])),
		region: options.region ?? "auto",
		smallestPartBytes: options.smallestPartBytes ?? 5 * 1024 * 1024,
		largestPage: options.largestPage ?? 1000,
		now: options.now ?? (() => new Date()),
		allowUnsignedPayload: options.allowUnsignedPayload ?? false,
		deletes: options.deletes ?? "denied",
		conditionalComplete: options.conditionalComplete ?? "honoured",
		uploads: new Map(),
		log: [],
		findFault: (operation, key) => findFault(faults, operation, key),
		requests: 0,
	}
	const listener = (request: IncomingMessage, response: ServerResponse) => {
		handle(state, request, response).catch((error: unknown) => {
			// A client that hung up is no failure of the server; anything else must be seen.
			if (!request.destroyed && !response.destroyed) console.error("s3-server:", error)
			response.destroy()
		})
	}
	const { address = "127.0.0.1" } = options
	const server =
		options.tls === undefined
			? createServer({ keepAliveTimeout: 5_000 }, listener)
			: createSecureServer({ keepAliveTimeout: 5_000, ...options.tls }, listener)
	await new Promise<void>((resolve, reject) => {
		server.once("error", reject)
		server.listen(options.port ?? 0, address, resolve)
	})
	const close = () =>
		new Promise<void>((resolve) => {
			server.close(() => resolve())
			server.closeAllConnections()
		})
	return {
		endpoint: `${options.tls === undefined ? `http://${address}` : "https://localhost"}:${(server.address() as AddressInfo).port}`,
		log: state.log,
		objects,
		fault: (fault) => {
			const planned: PlannedFault = { ...fault, hits: 0 }
			faults.push(planned)
			return {
				get hits() {
					return planned.hits
				},
				remove: () => {
					faults.splice(faults.indexOf(planned), 1)
				},
			}
		},
		revoke: (accessKeyId) => {
			state.credentials.delete(accessKeyId)
		},
		close,
		[Symbol.asyncDispose]: close,
	}
}
