// Makes tar archives byte by byte, the hostile ones included that no real tar would write.

export type MadeMember = {
	path: string
	type?: string
	content?: string | Buffer
	/** The size the header states; the content's own without it. */
	statedSize?: number
	target?: string
	mode?: number
	owner?: string
	group?: string
}

/** An archive of these members in ustar format, with its closing blocks. */
export function makeTar(members: readonly MadeMember[]): Buffer {
	return Buffer.concat([...members.map(makeMember), Buffer.alloc(1024)])
}

/** Header, content and padding of one member. */
export function makeMember(member: MadeMember): Buffer {
	const content = Buffer.from(member.content ?? "")
	const header = Buffer.alloc(512)
	const octal = (value: number, offset: number, length: number) =>
		header.write(`${value.toString(8).padStart(length - 1, "0")}\0`, offset, "latin1")
	header.write(member.path, 0, 100, "utf8")
	octal(member.mode ?? 0o644, 100, 8)
	octal(0, 108, 8)
	octal(0, 116, 8)
	octal(member.statedSize ?? content.length, 124, 12)
	octal(0, 136, 12)
	header.write(member.type ?? "0", 156, "latin1")
	header.write(member.target ?? "", 157, 100, "utf8")
	header.write("ustar\x0000", 257, "latin1")
	header.write(member.owner ?? "root", 265, 32, "utf8")
	header.write(member.group ?? "root", 297, 32, "utf8")
	return Buffer.concat([withChecksum(header), content, Buffer.alloc((512 - (content.length % 512)) % 512)])
}

/** The same header with the checksum that belongs to it. */
export function withChecksum(header: Buffer): Buffer {
	const block = Buffer.from(header)
	block.fill(" ", 148, 156)
	const sum = block.reduce((total, byte) => total + byte, 0)
	block.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148, "latin1")
	return block
}
