// Bodies come as bytes, whatever their content type says. Small ones are parsed, large ones scanned.
import { z } from "zod"
import { messageOf } from "../../lib/errors.ts"
import { HttpError, invalid, problemsOf } from "./errors.ts"
import { isFilledObject, JsonTextError, type Scanned, type Span, scanJson } from "./json-scan.ts"

const mebibyte = 1024 * 1024
export const mostWorkflowBytes = 10 * mebibyte
export const mostMetadataBytes = mebibyte
export const mostResultBytes = 50 * mebibyte
/** Room for a workflow, metadata and what stands around them. */
export const mostSubmitBytes = mostWorkflowBytes + mostMetadataBytes + 64 * 1024
/** What is worth parsing at once. */
export const mostSmallBytes = 128 * 1024

/** The bytes of a request's body; empty when it has none. */
export const bytesOf = (body: unknown): Buffer => (Buffer.isBuffer(body) ? body : Buffer.alloc(0))

/** Parses a small body. @throws {HttpError} 422 with all that is wrong */
export function parseBody<S extends z.ZodType>(schema: S, body: unknown): z.output<S> {
	const bytes = bytesOf(body)
	if (bytes.length === 0)
		throw new HttpError(422, [{ loc: ["body"], msg: "Field required", type: "missing" }])
	if (bytes.length > mostSmallBytes) throw new HttpError(422, "The body is too long")
	let value: unknown
	try {
		value = JSON.parse(bytes.toString())
	} catch (error) {
		throw new HttpError(422, [{ loc: ["body"], msg: messageOf(error), type: "json_invalid" }])
	}
	const read = schema.safeParse(value)
	if (!read.success) throw new HttpError(422, problemsOf(read.error.issues, "body"))
	return read.data
}

/** Scans a body of any size. @throws {HttpError} 422 */
export async function scanBody(body: unknown): Promise<{ bytes: Buffer; scanned: Scanned }> {
	const bytes = bytesOf(body)
	if (bytes.length === 0)
		throw new HttpError(422, [{ loc: ["body"], msg: "Field required", type: "missing" }])
	try {
		return { bytes, scanned: await scanJson(bytes) }
	} catch (error) {
		if (!(error instanceof JsonTextError)) throw error
		throw new HttpError(422, [{ loc: ["body"], msg: error.message, type: "json_invalid" }])
	}
}

export const userId = z.string().regex(/^[a-zA-Z0-9_-]{1,100}$/)
const one = (text: string) => /^\s*[0-3]\s*$/.test(text)
/** 0 to 3, as a number or as its digit in a string. */
export const priority = z
	.union([z.number().int().min(0).max(3), z.string().refine(one, "0, 1, 2 or 3")])
	.transform((value) => Number(value) as 0 | 1 | 2 | 3)

export type SubmitBody = {
	user: string
	priority: 0 | 1 | 2 | 3
	workflow: Buffer
	metadata: Buffer
	/** `metadata.source`, if it is a text. */
	source: string | undefined
	/** The workflow's kinds of nodes, sorted: what run times are compared by. */
	kind: string
}

/** Reads a submitted job. @throws {HttpError} 422 with the first thing that is wrong */
export async function readSubmit(body: unknown): Promise<SubmitBody> {
	const { bytes, scanned } = await scanBody(body)
	const span = (name: string): Span | undefined => scanned.members.get(name)
	const value = (name: string, most: number): unknown => {
		const found = span(name)
		if (found === undefined) return undefined
		if (found.end - found.start > most) throw invalid(name, `longer than ${most} bytes`)
		return JSON.parse(bytes.toString("utf8", found.start, found.end))
	}
	const read = <S extends z.ZodType>(name: string, schema: S, given: unknown): z.output<S> => {
		const parsed = schema.safeParse(given)
		if (parsed.success) return parsed.data
		const problems = problemsOf(parsed.error.issues, name).map(({ loc, ...rest }) => ({
			...rest,
			loc: ["body", ...loc],
		}))
		throw new HttpError(422, problems)
	}

	const user = read("user_id", userId, value("user_id", 1000))
	const level = read("priority", priority, span("priority") === undefined ? 2 : value("priority", 100))
	const workflow = span("workflow")
	if (workflow === undefined) {
		throw new HttpError(422, [{ loc: ["body", "workflow"], msg: "Field required", type: "missing" }])
	}
	if (!isFilledObject(bytes, workflow)) throw invalid("workflow", "must be an object that is not empty")
	if (workflow.end - workflow.start > mostWorkflowBytes) throw invalid("workflow", "larger than 10 MiB")
	const given = value("metadata", mostMetadataBytes) ?? {}
	const metadata = read("metadata", z.record(z.string(), z.unknown()), given)
	const metadataSpan = span("metadata")
	const source = Object.hasOwn(metadata, "source") ? metadata["source"] : undefined
	const metadataIsObject = metadataSpan !== undefined && bytes[metadataSpan.start] === 0x7b
	return {
		user,
		priority: level,
		workflow: bytes.subarray(workflow.start, workflow.end),
		metadata: metadataIsObject ? bytes.subarray(metadataSpan.start, metadataSpan.end) : Buffer.from("{}"),
		source: typeof source === "string" ? source : undefined,
		kind: kindOf(scanned.classTypes),
	}
}

function kindOf(classTypes: ReadonlyMap<string, number>): string {
	const kind = [...classTypes.keys()].sort().join(" ")
	return kind === "" ? "unknown" : kind.slice(0, 500)
}

/** What a worker hands in: the result as it came, and whether it speaks of a failure. */
export type CompleteBody = {
	result: Buffer
	/** Where its members stand. */
	members: ReadonlyMap<string, Span>
	failure: string | undefined
}

// Members of the bare form: with one of them on the outside, a `result` beside it is a part of the result.
const bareMembers = ["prompt_id", "outputs", "execution_time", "output_path", "timestamp"]
const failedStatuses = ["error", "failed", "failure"]

/** Reads a result, wrapped in `{result}` or bare. @throws {HttpError} 422 */
export async function readComplete(body: unknown): Promise<CompleteBody> {
	const { bytes, scanned } = await scanBody(body)
	const wrapped = bareMembers.some((name) => scanned.members.has(name))
		? undefined
		: scanned.members.get("result")
	if (wrapped !== undefined && bytes[wrapped.start] !== 0x7b) throw invalid("result", "must be an object")
	const result = wrapped === undefined ? bytes : Buffer.from(bytes.subarray(wrapped.start, wrapped.end))
	if (result.length > mostResultBytes) throw invalid("result", "larger than 50 MiB")
	const { members } = wrapped === undefined ? scanned : await scanJson(result)
	const text = (name: string): unknown => {
		const span = members.get(name)
		if (span === undefined || span.end - span.start > mostSmallBytes) return undefined
		return JSON.parse(result.toString("utf8", span.start, span.end))
	}
	const status = text("status")
	const broken = text("execution_error")
	const says = broken !== undefined && broken !== null && broken !== false
	const isFailure = says || (typeof status === "string" && failedStatuses.includes(status.toLowerCase()))
	const why = says ? broken : (text("error") ?? `the worker reports status ${String(status)}`)
	const failure = typeof why === "string" ? why : JSON.stringify(why)
	return { result, members, failure: isFailure ? failure.slice(0, 10_000) : undefined }
}

/** Some members of a result, as a JSON text of their own. */
export function pickMembers(
	{ result, members }: Omit<CompleteBody, "failure">,
	names: readonly string[],
): Buffer {
	return textOf(
		[...members].flatMap(([name, span]) =>
			names.includes(name) ? [[name, result.subarray(span.start, span.end)] as const] : [],
		),
	)
}

/** The result with some members put in or replaced; the others stay as they came, byte for byte. */
export function withMembers(
	{ result, members }: Omit<CompleteBody, "failure">,
	changed: Readonly<Record<string, unknown>>,
): Buffer {
	const kept = [...members].filter(([name]) => !Object.hasOwn(changed, name))
	return textOf([
		...kept.map(([name, span]) => [name, result.subarray(span.start, span.end)] as const),
		...Object.entries(changed).map(([name, value]) => [name, Buffer.from(JSON.stringify(value))] as const),
	])
}

function textOf(members: readonly (readonly [string, Buffer])[]): Buffer {
	const parts = members.flatMap(([name, value], index) => [
		Buffer.from(`${index === 0 ? "" : ","}${JSON.stringify(name)}:`),
		value,
	])
	return Buffer.concat([Buffer.from("{"), ...parts, Buffer.from("}")])
}
