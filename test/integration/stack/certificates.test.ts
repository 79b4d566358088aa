// The workshop's certificate, by the command: real certbot, a real ACME server, the real nginx with the rendered site.
// A directory stands in for the machine; its systemctl is a stand-in that knows `reload nginx` and no timers.
import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, beforeEach, expect, test } from "vitest"
import { stackOf } from "../../../src/lib/config/environment.ts"
import { readChain } from "../../../src/lib/formats/certificate.ts"
import { localHost } from "../../../src/lib/host/local.ts"
import { dockerOf } from "../../../src/lib/stack/docker.ts"
import { askDoor } from "../../../src/lib/stack/front.ts"
import { certificateIssued, certificateRight } from "../../../src/lib/steps/certificates.ts"
import type { StepContext } from "../../../src/lib/steps/context.ts"
import { type Authority, startAuthority, startRefusingAuthority } from "../../support/acme.ts"
import { domain, type FrontDoor, openFrontDoor, testEnvironment } from "../../support/front-door.ts"
import { describeWith } from "../../support/parts.ts"
import { run } from "../../support/run.ts"

const launcher = fileURLToPath(new URL("../../../bin/comfyume.js", import.meta.url))
const signal = new AbortController().signal

describeWith("acme", "the workshop's certificate", () => {
	let workshop: FrontDoor
	let authority: Authority
	const at = (...parts: string[]) => workshop.path(...parts)
	const certificate = () => readFileSync(at("certificates/cert.pem"), "utf8")
	const fingerprint = () => readChain(certificate())?.leaf.fingerprint
	const served = async () => {
		const answer = await askDoor({ domain, port: workshop.ports.https, path: "/health/ping", signal })
		return typeof answer === "string" ? answer : answer.fingerprint
	}

	beforeAll(async () => {
		workshop = await openFrontDoor(stackOf(testEnvironment(undefined)), 1)
		authority = await startAuthority(at("authority"), workshop.ports.http)
		configure({ source: "acme", email: "ops@example.test", server: authority.url })
		mkdirSync(at("usr/local/bin"), { recursive: true })
		program("comfyume", "exit 0")
		mkdirSync(at("etc/comfyume"), { recursive: true })
		writeFileSync(at("etc/comfyume/comfyume.yaml"), "version: 1\n")
		writeFileSync(at("etc/comfyume/environment"), "sandbox\n")
		program("certbot", `REQUESTS_CA_BUNDLE=${authority.caFile} exec /usr/bin/certbot "$@"`)
		program(
			"systemctl",
			`[ "$1 $2" = "reload nginx.service" ] || exit 1\nkill -HUP "$(cat ${at("nginx.pid")})"`,
		)
	})
	afterAll(async () => {
		await authority?.[Symbol.asyncDispose]()
		await workshop?.[Symbol.asyncDispose]()
	})
	beforeEach(async () => {
		await authority.lead(domain, "127.0.0.1")
		configure({ source: "acme", email: "ops@example.test", server: authority.url })
	})

	function program(name: string, script: string): void {
		writeFileSync(at("usr/local/bin", name), `#!/bin/sh\n${script}\n`)
		chmodSync(at("usr/local/bin", name), 0o755)
	}

	function configure(certificates: object, changes: object = {}): void {
		const { http, https } = workshop.ports
		const stack = {
			...{ directory: at("stack"), nginx: "host", ports: { http, https } },
			...{ paths: { certificates: "/certificates", acme: "/acme" }, certificates },
		}
		const environment = {
			...{ domain, allowStandIns: true, stack, ...changes },
			hosts: [{ name: "app-1", role: "app", connection: "directory", directory: at() }],
			git: {
				project: { remote: at("p.git"), branch: "main", path: "/p" },
				scripts: { remote: at("s.git"), branch: "main", path: "/s" },
			},
		}
		// JSON is YAML too.
		writeFileSync(at("comfyume.yaml"), JSON.stringify({ version: 1, environments: { sandbox: environment } }))
	}

	async function comfyume(...words: string[]) {
		const spoken = ["--config", at("comfyume.yaml"), "--env", "sandbox"]
		const environment = { PATH: process.env.PATH ?? "", HOME: at() }
		const ended = await run(process.execPath, [launcher, "certificates", ...words, ...spoken], {
			environment,
			allowedExitCodes: "any",
		})
		expect(ended.stdout + ended.stderr).not.toContain("PRIVATE KEY")
		return ended
	}

	test("what a self-signed certificate is, is said: status ends with 3", async () => {
		const { exitCode, stderr } = await comfyume("status")
		expect(exitCode).toBe(3)
		expect(stderr).toContain("self-signed: no browser trusts it")
		expect(stderr).toContain("comfyume certificates issue --env sandbox")
	})

	test("a certificate is issued, installed and served; a second run does nothing", async () => {
		const before = await served()
		const first = await comfyume("issue")
		expect(first).toMatchObject({ exitCode: 0 })
		expect(await served()).toBe(fingerprint())
		expect(await served()).not.toBe(before)
		expect(readChain(certificate())?.leaf.issuer).toContain("Pebble")
		expect(readChain(certificate())).toMatchObject({ problem: undefined })
		expect(statSync(at("certificates/key.pem")).mode & 0o777).toBe(0o600)
		expect(readFileSync(at("etc/cron.d/comfyume-certificates"), "utf8")).toContain(
			"certificates renew --quiet",
		)

		const installed = fingerprint()
		const again = await comfyume("renew")
		expect(again.exitCode).toBe(0)
		expect(again.stderr).toContain("6 already right")
		expect(fingerprint()).toBe(installed)
		expect((await comfyume("status")).exitCode).toBe(0)
	})

	test("a timer whose runs would find no configuration is no timer, and that is said", async () => {
		await comfyume("issue")
		rmSync(at("etc/comfyume/environment"))
		const { exitCode, stderr } = await comfyume("renew")
		expect(exitCode).toBe(3)
		expect(stderr).toContain("/etc/comfyume/environment is missing")
		expect(stderr).toContain("echo 'sandbox app-1' >")
		writeFileSync(at("etc/comfyume/environment"), "sandbox\n")
	})

	test("a new one that is asked for takes the old one's place on the wire", async () => {
		await comfyume("issue")
		const before = await served()
		const renewed = await comfyume("renew", "--force")
		expect(renewed.exitCode, renewed.stderr).toBe(0)
		expect(await served()).not.toBe(before)
		expect(await served()).toBe(fingerprint())
		expect(existsSync(at("certificates/cert.pem.bak"))).toBe(true)
	})

	test("what certbot has renewed by itself is installed by the next run", async () => {
		await comfyume("issue")
		const own = ["--config-dir", at("etc/letsencrypt"), "--work-dir", at("w"), "--logs-dir", at("l")]
		await run(at("usr/local/bin/certbot"), ["renew", "--force-renewal", "--no-random-sleep-on-renew", ...own])
		const [before] = [fingerprint()]
		const { exitCode } = await comfyume("renew")
		expect(exitCode).toBe(0)
		expect(fingerprint()).not.toBe(before)
		expect(await served()).toBe(fingerprint())
	})

	test("while the name leads elsewhere nothing is replaced, and the answer says so", async () => {
		await comfyume("issue")
		const before = fingerprint()
		// nginx is not there: the site listens on IPv4.
		await authority.lead(domain, "::1")
		const { exitCode, stderr } = await comfyume("renew", "--force")
		expect(exitCode).toBe(3)
		expect(stderr).toContain("does the name lead here yet?")
		expect(stderr).toContain(`dig +short A ${domain}`)
		expect(fingerprint()).toBe(before)
		expect(await served()).toBe(before)
	})

	test("a webroot that nginx doesn't show is noticed before anybody is asked", async () => {
		configure({ source: "acme", server: "https://127.0.0.1:9/dir" }, {})
		const text = readFileSync(at("comfyume.yaml"), "utf8").replace('"/acme"', '"/elsewhere"')
		writeFileSync(at("comfyume.yaml"), text)
		const { exitCode, stderr } = await comfyume("renew", "--force")
		expect(exitCode).toBe(3)
		expect(stderr).toContain("nginx doesn't show here what lies in /elsewhere: status 404")
	})

	test("an authority that is away is 4, one that has had enough says so", async () => {
		await comfyume("issue")
		const before = fingerprint()
		configure({ source: "acme", server: "https://127.0.0.1:9/dir" })
		const away = await comfyume("renew", "--force")
		expect(away.exitCode).toBe(4)
		expect(away.stderr).toContain("the authority can't be reached")
		await using refusing = await startRefusingAuthority(at("authority"))
		configure({ source: "acme", server: refusing.url })
		const enough = await comfyume("renew", "--force")
		expect(enough.exitCode).toBe(3)
		expect(enough.stderr).toContain("has issued or refused too many lately")
		expect(fingerprint()).toBe(before)
	})

	test("without any certificate a self-signed one lets nginx start, and says that it is one", async () => {
		for (const lost of ["certificates", "etc/letsencrypt"]) rmSync(at(lost), { recursive: true })
		configure({ source: "acme", server: "https://127.0.0.1:9/dir" })
		const { exitCode, stderr } = await comfyume("issue")
		expect(exitCode).toBe(4)
		expect(stderr).toContain("self-signed until a real one comes")
		const chain = readChain(certificate())
		expect(chain?.leaf).toMatchObject({ selfSigned: true, names: [domain] })
		expect(chain?.leaf.issuer).toContain("comfyume self-signed, not trusted")
		expect(chain?.leaf.fits(readFileSync(at("certificates/key.pem"), "utf8"))).toBe(true)
		expect(statSync(at("certificates/key.pem")).mode & 0o777).toBe(0o600)
	})

	test("a bought certificate is installed, and one that doesn't fit is not", async () => {
		const ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
		const make = async (name: string, ...more: string[]) => {
			const files = ["-keyout", at(`${name}.key`), "-out", at(`${name}.csr`)]
			await run("openssl", ["req", ...ec, "-noenc", "-subj", `/CN=${name}`, ...files])
			const signed = [
				"-in",
				at(`${name}.csr`),
				"-CA",
				at("ca.pem"),
				"-CAkey",
				at("ca.key"),
				"-out",
				at(`${name}.pem`),
			]
			await run("openssl", ["x509", "-req", ...signed, "-CAcreateserial", ...more])
		}
		const ca = [
			"-subj",
			"/O=A made-up authority",
			"-keyout",
			at("ca.key"),
			"-out",
			at("ca.pem"),
			"-days",
			"400",
		]
		await run("openssl", ["req", "-x509", ...ec, "-noenc", ...ca])
		writeFileSync(at("names"), `subjectAltName=DNS:${domain}\n`)
		writeFileSync(at("other-names"), "subjectAltName=DNS:other.example.test\n")
		await make("bought", "-days", "300", "-extfile", at("names"))
		await make("other", "-days", "300", "-extfile", at("other-names"))
		await make(
			"ended",
			"-not_before",
			"20200101000000Z",
			"-not_after",
			"20200201000000Z",
			"-extfile",
			at("names"),
		).catch(
			// OpenSSL before 3.4 can only count from now.
			() => make("ended", "-days", "-1", "-extfile", at("names")),
		)
		configure({ source: "mounted" })
		const before = fingerprint()
		const refused = {
			"the key of --key doesn't belong": ["--cert", at("bought.pem"), "--key", at("other.key")],
			"it is for other.example.test, and not for": ["--cert", at("other.pem"), "--key", at("other.key")],
			"it ended on": ["--cert", at("ended.pem"), "--key", at("ended.key")],
			"holds no certificate in PEM": ["--cert", at("names"), "--key", at("bought.key")],
			"doesn't vouch for the one before it": [
				...["--cert", at("bought.pem"), "--key", at("bought.key"), "--chain", at("other.pem")],
			],
		}
		for (const [says, words] of Object.entries(refused)) {
			const { exitCode, stderr } = await comfyume("install", ...words)
			expect({ says, exitCode }).toEqual({ says, exitCode: 8 })
			expect(stderr).toContain(says)
			expect(fingerprint()).toBe(before)
		}
		const words = ["--cert", at("bought.pem"), "--key", at("bought.key"), "--chain", at("ca.pem")]
		expect(await comfyume("install", ...words)).toMatchObject({ exitCode: 0 })
		expect(certificate()).toBe(readFileSync(at("bought.pem"), "utf8") + readFileSync(at("ca.pem"), "utf8"))
		expect(await served()).toBe(fingerprint())
		const acme = await comfyume("issue")
		expect(acme.exitCode).toBe(2)
		expect(acme.stderr).toContain("certificates of sandbox are bought")
	})

	test("a dry run says what would be done, and leaves everything", async () => {
		expect(await comfyume("issue")).toMatchObject({ exitCode: 0 })
		const before = fingerprint()
		const { exitCode, stderr } = await comfyume("renew", "--force", "--dry-run")
		expect(exitCode).toBe(0)
		expect(stderr).toContain("a new one was asked for")
		expect(fingerprint()).toBe(before)
	})

	test("thirty days before its end it is due, fourteen before it is an alarm", async () => {
		expect(await comfyume("issue")).toMatchObject({ exitCode: 0 })
		const host = localHost({ name: "app-1", root: at(), environment: { PATH: process.env.PATH } })
		const environment = testEnvironment({
			...stackOf(testEnvironment(undefined)),
			paths: { ...stackOf(testEnvironment(undefined)).paths, certificates: "/certificates" },
			certificates: { source: "acme", server: authority.url, directory: "/etc/letsencrypt" },
		})
		const { describeStack } = await import("../../../src/lib/stack/description.ts")
		const stack = describeStack(environment, [1])
		const findings = async (daysBefore: number) => {
			const until = readChain(readFileSync(at("etc/letsencrypt/live/comfyume/fullchain.pem"), "utf8"))?.leaf
				.until
			const now = () => new Date((until?.getTime() ?? 0) - daysBefore * 86_400_000)
			const context = { host, environment, now, spoken: "--env sandbox", signal } as unknown as StepContext
			const work = { context, stack, docker: dockerOf(host, at("stack")) }
			const report = {} as never
			const issued = await certificateIssued(work, { force: false }).check(report)
			const right = await certificateRight(work).check(report)
			return [issued.state, right.state]
		}
		expect(await findings(32)).toEqual(["satisfied", "satisfied"])
		expect(await findings(30)).toEqual(["needed", "satisfied"])
		expect(await findings(13)).toEqual(["needed", "needed"])
		expect(await findings(-1)).toEqual(["needed", "needed"])
	})
})
