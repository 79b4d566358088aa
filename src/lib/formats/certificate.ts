// Reads TLS certificates in PEM: whom they are for and until when, and whether a key and a chain belong to them.
import { createPrivateKey, X509Certificate } from "node:crypto"

export type Certificate = {
	/** The names it was made for, as in `*.example.test`. */
	names: readonly string[]
	from: Date
	until: Date
	/** Who vouches for it: organisation and common name. */
	issuer: string
	/** Nobody but itself vouches for it. */
	selfSigned: boolean
	/** sha256 of the certificate itself, 64 small hexadecimal digits. */
	fingerprint: string
	/** Whether a browser takes it for this name. */
	covers: (domain: string) => boolean
	/** Whether it belongs to this private key, in PEM. False for what is no key. */
	fits: (key: string) => boolean
}

/** The certificates of one file, in their order: the server's own first, then who vouches for the one before. */
export type Chain = { leaf: Certificate; problem: string | undefined }

const block = /-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g

/**
 * Reads a PEM file's certificates.
 * @returns undefined where no certificate stands in it, or one that can't be read. `problem` says when a chain isn't one
 */
export function readChain(pem: string): Chain | undefined {
	const blocks = pem.match(block) ?? []
	try {
		const all = blocks.map((text) => new X509Certificate(text))
		const [leaf] = all
		return leaf === undefined ? undefined : { leaf: describe(leaf), problem: chainProblem(all) }
	} catch {
		return undefined
	}
}

function chainProblem(chain: readonly X509Certificate[]): string | undefined {
	for (const [index, certificate] of chain.entries()) {
		const next = chain[index + 1]
		if (next === undefined) return undefined
		if (!certificate.checkIssued(next) || !certificate.verify(next.publicKey))
			return `certificate ${index + 2} of the file doesn't vouch for the one before it`
	}
	return undefined
}

function describe(certificate: X509Certificate): Certificate {
	const subject = certificate.toLegacyObject()
	const issuer = subject.issuer as { O?: string; CN?: string } | undefined
	const names = (certificate.subjectAltName ?? "")
		.split(", ")
		.flatMap((name) => /^DNS:(.+)$/.exec(name)?.[1] ?? [])
	return {
		names,
		from: new Date(certificate.validFrom),
		until: new Date(certificate.validTo),
		issuer: [issuer?.O, issuer?.CN].filter((part) => part !== undefined).join(" ") || "nobody",
		selfSigned: certificate.checkIssued(certificate) && certificate.verify(certificate.publicKey),
		fingerprint: certificate.fingerprint256.replaceAll(":", "").toLowerCase(),
		// A common name alone is no name to a browser.
		covers: (domain) => certificate.checkHost(domain, { subject: "never" }) !== undefined,
		fits(key) {
			try {
				return certificate.checkPrivateKey(createPrivateKey(key))
			} catch {
				return false
			}
		},
	}
}
