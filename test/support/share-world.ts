// A world for transport 3 in one temporary directory: a share, users' outputs, replicas of the ComfyUI stand-in behind
// a load balancer, and the transport with the real threads; times are shorter than in production.
import { randomBytes } from "node:crypto"
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { setTimeout as pause } from "node:timers/promises"
import { Secret } from "../../src/lib/secret.ts"
import { type Files, openFilePool } from "../../src/queue-manager/outputs/file-pool.ts"
import type { SettleTimes } from "../../src/queue-manager/outputs/settle.ts"
import type { Outcome, TransportJob } from "../../src/queue-manager/transport.ts"
import { openEndpoints } from "../../src/queue-manager/transports/endpoints.ts"
import {
	type SharedFilesystem,
	type SharedFilesystemOptions,
	sharedFilesystem,
} from "../../src/queue-manager/transports/shared-filesystem.ts"
import { type Comfyui, type ComfyuiOptions, startComfyui } from "./comfyui.ts"
import type { Timing } from "./comfyui-files.ts"
import { fileRecords } from "./delivery-records.ts"
import { startLoadBalancer } from "./load-balancer.ts"
import type { Mood } from "./moody-files.ts"

export const quickTimes: SettleTimes = { pictureMs: 300, filmMs: 500, unknownMs: 500, damagedMs: 600 }
export const quickTiming: Timing = { runMs: 50, pngEmptyMs: 80, mp4HeadMs: 200, batchGapMs: 120 }

export const realClock = {
	nowMs: () => performance.now() + performance.timeOrigin,
	wait: async (ms: number, signal?: AbortSignal) => void (await pause(ms, undefined, { signal })),
}

export type ShareWorld = Awaited<ReturnType<typeof createShareWorld>>

/** @param options.gpuShare where the GPU's side writes, when it is another volume */
export async function createShareWorld(
	options: {
		replicas?: number
		comfyui?: Partial<ComfyuiOptions>
		transport?: Partial<SharedFilesystemOptions>
		gpuShare?: boolean
		slots?: number
	} = {},
) {
	const directory = mkdtempSync(join(tmpdir(), "comfyume-share-"))
	const [share, outputs, other] = ["share", "outputs", "other"].map((name) => join(directory, name)) as [
		string,
		string,
		string,
	]
	for (const path of [share, outputs, other]) mkdirSync(path)
	const control = join(directory, "mood.json")
	const threadFile = new URL("./moody-files.ts", import.meta.url)
	const looking = openFilePool({
		name: "the share",
		threads: 2,
		// Long enough for a busy machine, short enough to wait for where the mount hangs.
		deadlineMs: 4_000,
		threadFile,
		threadData: control,
	})
	const delivering = openFilePool({ name: "the share", threads: 2, threadFile, threadData: control })
	let looks = 0
	const counted: Files = {
		...looking.files,
		list(...given) {
			looks++
			return looking.files.list(...given)
		},
	}
	const records = fileRecords(join(directory, "records.json"))

	const replicas: Comfyui[] = []
	for (let count = 0; count < (options.replicas ?? 2); count++)
		replicas.push(
			await startComfyui({
				outputDirectory: options.gpuShare === true ? other : share,
				timing: quickTiming,
				wantsUuids: true,
				...options.comfyui,
			}),
		)
	const balancer = await startLoadBalancer(
		replicas.map(({ url }) => url),
		{ key: "made-up-inference-key" },
	)
	const key = new Secret("made-up-inference-key")
	const said: Parameters<NonNullable<SharedFilesystemOptions["say"]>>[0][] = []
	/** A queue manager of its own: what it knows is gone with it. */
	const open = (more: Partial<SharedFilesystemOptions> = {}) => {
		const endpoints = openEndpoints(
			[
				{ name: "h200-spot", url: `${balancer.url}/`, key, slots: options.slots ?? 4 },
				{ name: "b300-spot", url: balancer.url, key, slots: options.slots ?? 4 },
			],
			"h200-spot",
		)
		const transport = sharedFilesystem({
			endpoints,
			files: counted,
			deliveryFiles: delivering.files,
			records,
			clock: realClock,
			randomId: () => randomBytes(6).toString("hex"),
			shareRoot: share,
			outputsRoot: outputs,
			acceptMs: 5_000,
			maxWaitMs: 20_000,
			lateMs: 1_500,
			sightMs: 200,
			tickMs: 50,
			coldTickMs: 150,
			times: quickTimes,
			say: (event) => said.push(event),
			...options.transport,
			...more,
		})
		return { transport, endpoints }
	}
	const { transport, endpoints } = open()
	const run = async (job: TransportJob, on: SharedFilesystem = transport): Promise<Outcome> => {
		await on.start(job)
		return on.observe(job, () => {}, new AbortController().signal)
	}
	return {
		directory,
		share,
		outputs,
		other,
		replicas,
		balancer,
		records,
		said,
		transport,
		endpoints,
		open,
		run,
		stuck: looking.stuck,
		/** How often a directory was listed. */
		looks: () => looks,
		files: looking.files,
		mood: (mood: Mood) => writeFileSync(control, JSON.stringify(mood)),
		/** The visible files of a user, in order. */
		delivered: (user: string) => list(join(outputs, user)).filter((name) => !name.startsWith(".")),
		everything: (user: string) => list(join(outputs, user)),
		read: (user: string, name: string) => readFileSync(join(outputs, user, name)),
		[Symbol.asyncDispose]: async () => {
			writeFileSync(control, "{}")
			await balancer[Symbol.asyncDispose]()
			for (const replica of replicas) await replica[Symbol.asyncDispose]()
			await looking[Symbol.asyncDispose]()
			await delivering[Symbol.asyncDispose]()
			rmSync(directory, { recursive: true, force: true })
		},
	}
}

function list(path: string): string[] {
	try {
		return readdirSync(path).sort()
	} catch {
		return []
	}
}

let lastJob = 0

/** A job with an id of its own. */
export function jobOf(workflow: Record<string, unknown>, more: Partial<TransportJob> = {}): TransportJob {
	const id = `job-${++lastJob}-${randomBytes(3).toString("hex")}`
	const createdMs = Date.UTC(2026, 10, 21, 9)
	return {
		id,
		user: "user001",
		attempt: 1,
		createdMs,
		workflow: Buffer.from(JSON.stringify(workflow)),
		...more,
	}
}

/** Where an attempt's files go. */
export const placeOf = ({ id, attempt }: TransportJob, tail = "") => `cq/20261121/${id}/a${attempt}${tail}`

export const imageWorkflow = (batch = 1, prefix: unknown = "Film") => ({
	"5": { class_type: "EmptyImage", inputs: { width: 8, height: 8 } },
	"9": { class_type: "SaveImage", inputs: { images: ["5", 0], filename_prefix: prefix, batch } },
})

export const videoWorkflow = () => ({
	"5": { class_type: "EmptyImage", inputs: { width: 8, height: 8 } },
	"57:8": { class_type: "SaveVideo", inputs: { video: ["5", 0], filename_prefix: "video/Take" } },
})
