// The vendor's package repository: its key and its line for apt. Debian has no tailscale of its own.
import { createHash } from "node:crypto"
import { exitCodes, OperatorError } from "../../errors.ts"
import { readOsRelease } from "../../formats/dpkg.ts"
import { command } from "../../host/command.ts"
import type { StepContext } from "../context.ts"

const keyring = "/etc/apt/keyrings/comfyume-tailscale.gpg"
const list = "/etc/apt/sources.list.d/comfyume-tailscale.list"
const offered = ["debian", "ubuntu"]

/**
 * Sets it up, unless the machine has it already. The key comes before the line that needs it.
 * @throws {OperatorError} (8) when the key is another one than configured, (4) when it can't be fetched
 */
export async function addTailscaleRepository({ host, environment }: StepContext): Promise<void> {
	const { repository, keySha256 } = environment.packages.tailscale
	const base = repository.replace(/\/+$/, "")
	// Named twice with different keys, apt refuses to do anything at all.
	const sources = ["/etc/apt/sources.list", "/etc/apt/sources.list.d"]
	const own = list.slice(list.lastIndexOf("/") + 1)
	const others = command(
		...(["grep", "--quiet", "--recursive", "--fixed-strings", "--exclude", own, `${base}/`] as const),
		...sources,
	)
	if (await host.test(others)) return

	const { id, codename } = readOsRelease((await host.read("/etc/os-release"))?.toString() ?? "")
	if (!offered.includes(id) || codename === "")
		throw new OperatorError(
			`${host.name} is ${id || "an unknown system"} ${codename}, and comfyume knows Tailscale's repository for Debian and Ubuntu`,
			{ hint: "install tailscale by hand: https://tailscale.com/download/linux" },
		)
	await host.files.makeDirectory("/etc/apt/keyrings", 0o755)
	await fetchKey()
	await host.write(list, `deb [signed-by=${keyring}] ${base}/${id} ${codename} main\n`, { mode: 0o644 })

	async function fetchKey(): Promise<void> {
		const address = `${base}/${id}/${codename}.noarmor.gpg`
		const fetched = `${keyring}.fetched`
		const protocols = environment.allowPlainHttp ? "=https,http" : "=https"
		try {
			await host
				.execute(
					command(
						...(["curl", "--fail", "--silent", "--show-error", "--proto", protocols] as const),
						...["--max-time", "60", "--output", fetched, address],
					),
				)
				.catch((error: unknown) => {
					if (!(error instanceof OperatorError)) throw error
					throw new OperatorError(`the key of Tailscale's repository can't be fetched: ${error.message}`, {
						exitCode: exitCodes.unreachable,
						hint: `curl -I ${address}`,
						cause: error,
					})
				})
			const key = (await host.read(fetched)) ?? Buffer.alloc(0)
			const digest = createHash("sha256").update(key).digest("hex")
			if (keySha256 !== undefined && digest !== keySha256)
				throw new OperatorError(
					`the key of Tailscale's repository has another sha256 than configured: ${digest}`,
					{
						exitCode: exitCodes.refusedByGuard,
						hint: `look at ${address}, then packages.tailscale.keySha256 in comfyume.yaml`,
					},
				)
			// An OpenPGP packet has its highest bit set: a page with an error has not.
			if (((key[0] ?? 0) & 0x80) === 0)
				throw new OperatorError(`${address} is no key`, {
					exitCode: exitCodes.unreachable,
					hint: `curl ${address}`,
				})
			await host.write(keyring, key, { mode: 0o644 })
		} finally {
			await host.files.remove(fetched)
		}
	}
}
