// Bringing one snapshot back on trial, into a directory that only root can enter.
import { readdir, readFile } from "node:fs/promises"
import { join } from "node:path"
import type { ArchiveArtifact, GitArtifact, ImageArtifact } from "../artifacts/catalogue.ts"
import { fetchCopy, verifyCopy } from "../artifacts/chain.ts"
import { checkAccess, placeCheckout, verifyCheckout } from "../artifacts/git.ts"
import { short, verifyImage } from "../artifacts/image.ts"
import type { Finished } from "../artifacts/standing.ts"
import { unpackOnTrial } from "../artifacts/trial.ts"
import { exitCodes, OperatorError } from "../errors.ts"
import { command } from "../host/command.ts"
import { requireSpaceOn, spaceFactor } from "../host/disk.ts"
import { fingerprintOf } from "../host/known-hosts.ts"
import type { Report } from "../plan/step.ts"
import { checkoutOf } from "./checkout.ts"
import { drillDirectory, type StepContext } from "./context.ts"

/** `proof`: what was shown. `sizeBytes`: of what was fetched. `opened`: false where the key wasn't at hand. */
export type BroughtBack = { proof: string; sizeBytes?: number; opened?: false }

const fetchedDirectory = `${drillDirectory}/fetched`
const treeDirectory = `${drillDirectory}/tree`
const cloneDirectory = `${drillDirectory}/clone`

/**
 * Fetches an archive from the one place it is asked of, unpacks it, and compares; the caller takes it all away again.
 * @throws {OperatorError} (3) saying what is wrong; (7) when there isn't room for archive and content
 */
export async function drillArchive(
	context: StepContext,
	artifact: ArchiveArtifact,
	{ copy, sidecar }: Finished,
	report: Report,
): Promise<BroughtBack> {
	const { environment, hostConfiguration, host, spoken, ageIdentity, now, signal } = context
	if (sidecar.kind !== "archive")
		throw new OperatorError("its sidecar is that of a commit, not of an archive")
	await host.files.makeDirectory(treeDirectory, 0o700)
	await host.files.setMode(drillDirectory, 0o700)
	// An incremental snapshot lies in the archives of earlier ones too.
	const earlier = sidecar.incremental?.archives ?? []
	const sizeBytes = earlier.reduce((sum, archive) => sum + archive.sizeBytes, sidecar.sizeBytes)
	const bytes = Math.ceil((sizeBytes + sidecar.unpackedBytes) * spaceFactor)
	await requireSpaceOn(host, drillDirectory, { bytes, files: sidecar.members })
	const wanted = {
		environment: environment.name,
		host: hostConfiguration.name,
		spoken,
		allowUnverified: false,
	}
	const work = { host, artifact, wanted, workDirectory: fetchedDirectory, now, signal, report }
	if (sidecar.encryption !== undefined && ageIdentity === undefined) {
		// By schedule it runs on the server, where the key has no business: the bytes are proven, and not that it opens them.
		await fetchCopy(work, copy)
		return {
			proof: "encrypted, and as its sidecar says; not opened: AGE_IDENTITY isn't here",
			opened: false,
			sizeBytes,
		}
	}
	// The one place where a drill opens an archive.
	const verified = await verifyCopy(work, copy, ageIdentity)
	if (verified === undefined) throw new OperatorError("it was taken from another host")
	const { entries } = await unpackOnTrial(host, artifact, verified, treeDirectory)
	const tried = await tryOut(context, artifact)
	const files = entries.filter(({ type }) => type === "file").length
	return {
		proof: [`${files} ${files === 1 ? "file" : "files"} as sha256sum has them`, ...tried].join("; "),
		sizeBytes,
	}
}

/**
 * Fetches an image's archive from the one place it is asked of, and reads it layer by layer. It isn't loaded: that would
 * take the name from the image that is in use.
 * @throws {OperatorError} (3) saying what is wrong; (7) when there isn't room for the archive
 */
export async function drillImage(
	context: StepContext,
	artifact: ImageArtifact,
	{ copy, sidecar }: Finished,
	report: Report,
): Promise<BroughtBack> {
	const { environment, hostConfiguration, host, spoken, now, signal } = context
	if (sidecar.kind !== "image")
		throw new OperatorError(`its sidecar is that of a ${sidecar.kind}, not of an image`)
	const { sizeBytes, imageId } = sidecar
	await host.files.makeDirectory(drillDirectory, 0o700)
	await requireSpaceOn(host, drillDirectory, { bytes: Math.ceil(sizeBytes * spaceFactor) })
	const owner = { environment: environment.name, host: hostConfiguration.name }
	const wanted = { ...owner, spoken, allowUnverified: false }
	const work = { host, artifact, wanted, workDirectory: fetchedDirectory, now, signal, report }
	if ((await verifyImage(work, copy)) === undefined) throw new OperatorError("it was taken from another host")
	return { proof: `every layer of ${short(imageId)}, not loaded`, sizeBytes }
}

/** What the catalogue wants to succeed with restored files in place, as far as it can be asked without placing them. */
async function tryOut(context: StepContext, artifact: ArchiveArtifact): Promise<string[]> {
	if (artifact.validate === undefined) return []
	if (artifact.name !== "ssh-host-keys") return [`\`${artifact.validate.join(" ")}\` can't be asked on trial`]
	return [await tryHostKeys(context)]
}

async function tryHostKeys({ host, hostConfiguration }: StepContext): Promise<string> {
	const directory = `${treeDirectory}/etc/ssh`
	const names = await readdir(host.path(directory))
	const privateKeys = names.filter((name) => name.endsWith("_key")).sort()
	const configuration = `${drillDirectory}/sshd_config`
	// One by one: of several keys sshd is content with a single good one.
	for (const name of privateKeys) {
		await host.write(configuration, `HostKey ${host.path(join(directory, name))}\n`, { mode: 0o600 })
		await host.capture(command("sshd", "-t", "-f", host.path(configuration)))
	}
	const expected = hostConfiguration.hostKeys
	if (expected.length === 0) return "sshd takes the keys"
	const publicKeys = await Promise.all(
		names
			.filter((name) => name.endsWith(".pub"))
			.map((name) => readFile(host.path(join(directory, name)), "utf8")),
	)
	const found = publicKeys.map((text) => fingerprintOf(Buffer.from(text.split(" ")[1] ?? "", "base64")))
	if (expected.some((fingerprint) => found.includes(fingerprint)))
		return "sshd takes the keys; one is configured"
	throw new OperatorError(
		`none of its keys is configured for ${hostConfiguration.name}: ${found.sort().join(", ")}`,
		{ exitCode: exitCodes.incomplete, hint: "compare hostKeys in comfyume.yaml" },
	)
}

/**
 * Clones what a snapshot of a checkout names, as its owner and at its commit, and lets git judge the clone.
 * @throws {OperatorError} (4) when the remote can't be reached, (6) when it refuses, (3) when it lacks the commit
 */
export async function drillCheckout(
	context: StepContext,
	artifact: GitArtifact,
	{ sidecar }: Finished,
): Promise<BroughtBack> {
	const { host, gitToken, randomId, signal } = context
	if (sidecar.kind !== "commit") throw new OperatorError("its sidecar is that of an archive, not of a commit")
	const { remote, branch, commit } = sidecar
	const checkout = { ...checkoutOf(context, artifact), path: `${cloneDirectory}/checkout` }
	if (remote !== checkout.remote)
		throw new OperatorError(`it names ${remote}, and the configuration ${checkout.remote}`)
	await host.files.makeDirectory(cloneDirectory, 0o700)
	if (!host.standIn) {
		// git runs as the checkout's owner, who must get through to his clone. Nothing else lies here meanwhile.
		await host.execute(command("chmod", "o+x", "/var/lib/comfyume", drillDirectory))
		await host.execute(command("chown", "--", checkout.user, cloneDirectory))
	}
	try {
		await checkAccess(checkout, gitToken, signal)
		await placeCheckout(host, { ...checkout, branch: branch === "HEAD" ? checkout.branch : branch }, commit, {
			token: gitToken,
			scratch: randomId(),
		})
		await verifyCheckout(host, checkout, commit)
	} finally {
		await host.files.setMode(drillDirectory, 0o700)
	}
	return { proof: `${commit.slice(0, 12)} cloned from its remote, git fsck` }
}
