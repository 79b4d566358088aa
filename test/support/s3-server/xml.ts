// The little XML that S3 speaks.

/** A refusal as S3 words it. */
export class S3Failure extends Error {
	readonly status: number
	readonly code: string

	constructor(status: number, code: string, message: string) {
		super(message)
		this.status = status
		this.code = code
	}
}

/** An element's content: text, elements, or several of the same name. */
export type XmlNode = string | number | boolean | { [name: string]: XmlNode | readonly XmlNode[] | undefined }

/** Renders one document. `undefined` leaves an element out. */
export function renderXml(name: string, node: XmlNode): string {
	return `<?xml version="1.0" encoding="UTF-8"?>\n${element(name, node)}`
}

function element(name: string, node: XmlNode): string {
	if (typeof node !== "object") return `<${name}>${escapeXml(String(node))}</${name}>`
	const inner = Object.entries(node)
		.flatMap(([child, value]) => {
			if (value === undefined) return []
			return (Array.isArray(value) ? value : [value]).map((one) => element(child, one as XmlNode))
		})
		.join("")
	return `<${name}>${inner}</${name}>`
}

const escapeXml = (text: string) =>
	text
		.replaceAll("&", "&amp;")
		.replaceAll("<", "&lt;")
		.replaceAll(">", "&gt;")
		.replaceAll('"', "&quot;")
		.replaceAll("\r", "&#13;")

/** The parts that a CompleteMultipartUpload names, in its order. */
export function parseCompletion(xml: string): { number: number; etag: string; crc64?: string }[] {
	return [...xml.matchAll(/<Part>([\s\S]*?)<\/Part>/g)].map(([, part = ""]) => {
		const crc64 = textOf(part, "ChecksumCRC64NVME")
		return {
			number: Number(textOf(part, "PartNumber")),
			etag: (textOf(part, "ETag") ?? "").replaceAll("&quot;", '"'),
			...(crc64 === undefined ? {} : { crc64 }),
		}
	})
}

const textOf = (xml: string, name: string) => new RegExp(`<${name}>([^<]*)</${name}>`).exec(xml)?.[1]
