// What stands in comfyume.yaml: its schema, and the types everything else works with.
import { z } from "zod"
import { recipientProblem } from "../formats/age.ts"
import type { MountCommand } from "../formats/mount-command.ts"
import type { Jurisdiction } from "../formats/r2-endpoint.ts"

// A message of the schema carries its fix behind this mark; `problems.ts` takes them apart.
export const fixMark = " → "

const text = (pattern: RegExp, says: string, fix: string) =>
	z.string().regex(pattern, `${says}${fixMark}${fix}`)

const hostName = text(
	/^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$/,
	"is not a host's name",
	"use small letters, digits and -, as in app-1",
)
const domain = text(
	/^(?=.{1,253}$)([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z0-9-]*[a-z][a-z0-9-]*$/,
	"is not a domain name",
	"write it without https:// and path, in small letters, as in workshop.example.test",
)
const address = text(
	/^([A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|[0-9a-fA-F]*:[0-9a-fA-F:.]+)$/,
	"is neither an address nor a host name",
	"write only the address, as in 203.0.113.10; the port goes under `port:` and the user under `user:`",
)
const absolutePath = text(
	/^\/(?!.*(^|\/)\.\.?(\/|$))[^\0\n]*$/,
	"is not an absolute path without . and ..",
	"begin it with /",
)
const relativePath = text(
	/^(?!\/)(?!.*(^|\/)\.\.?(\/|$))[^\0\n]+$/,
	"is not a path below the mount point",
	"write it without a leading / and without .., as in cache/backups",
)
const anyPath = text(/^[^\0\n]+$/, "is not a path", "write an absolute path, or one relative to this file")
const userName = text(/^[a-z_][a-z0-9_-]{0,31}$/, "is not a user's name", "as in dev")
const fingerprint = text(
	/^SHA256:[A-Za-z0-9+/]{43}$/,
	"is not a host key's fingerprint",
	"write it as `ssh-keygen -lf` prints it: SHA256: and 43 characters",
)
const tailscaleAddress = text(
	/^100\.(6[4-9]|[7-9]\d|1[01]\d|12[0-7])(\.(\d|[1-9]\d|1\d\d|2[0-4]\d|25[0-5])){2}$/,
	"is not a Tailscale address",
	"write the IPv4 address that `tailscale ip -4` prints, from 100.64.0.0 to 100.127.255.255",
)
const branch = text(
	/^(?![-/.])(?!.*(\.\.|\/\/|@\{|\.lock$|[/.]$))[\w./+#@=-]+$/,
	"is not a branch's name",
	"as in main",
)
const commit = text(
	/^[0-9a-f]{40}$/,
	"is not a full commit id",
	"write all 40 digits, as `git rev-parse HEAD` prints them",
)
const publicKey = text(
	/^(sk-)?(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp\d+)(@openssh\.com)? [A-Za-z0-9+/]{40,}={0,3}( [^\n]*)?$/,
	"is not an SSH public key",
	"copy the whole line of the .pub file, as in ssh-ed25519 AAAA… name",
)
const firewallRule = text(
	/^([1-9]\d{0,4})\/(tcp|udp)( limit)?$/,
	"is not a rule of the firewall",
	"write port/protocol, and limit behind it where logins are slowed down, as in 22/tcp limit",
)
const debianPackage = text(/^[a-z0-9][a-z0-9.+-]+$/, "is not a package's name", "as in htop")
const ageRecipient = z.string().superRefine((written, context) => {
	const problem = recipientProblem(written)
	if (problem !== undefined)
		context.addIssue({
			code: "custom",
			message: `${problem.message}${fixMark}${problem.fix}`,
			// Only a text is shown with the problem, and a private key that was pasted by mistake must not be.
			...(/^age1/.test(written) ? {} : { input: [] }),
		})
})
const bucketName = text(
	/^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$/,
	"is not a bucket's name",
	"3 to 63 small letters, digits and -, without a slash",
)

const hostSchema = z.strictObject({
	name: hostName.describe("What reports, locks and records call this host."),
	role: z.enum(["app", "worker"]).describe("app: the app server; worker: a GPU worker."),
	connection: z
		.enum(["ssh", "directory"])
		.default("ssh")
		.describe("directory: a directory stands in for the machine (demo and tests; needs allowStandIns)."),
	address: address.optional().describe("Where SSH reaches it."),
	directory: anyPath.optional().describe("With connection: directory; relative to this file."),
	port: z.int().min(1).max(65_535).default(22),
	user: userName.default("root").describe("Who comfyume logs in as; root, or a user with sudo -n."),
	keyFiles: z.array(anyPath).default([]).describe("Private keys to try besides the agent's."),
	hostKeys: z
		.array(fingerprint)
		.default([])
		.describe("Fingerprints of the identity that comes back with a restore."),
	tailscaleAddress: tailscaleAddress
		.optional()
		.describe("The address that `tailscale ip -4` must print on this host."),
	tailnet: z
		.enum(["identity", "join", "none"])
		.optional()
		.describe(
			"identity: its old one comes back (what a tailscaleAddress means); join: as a new machine, by " +
				"TAILSCALE_AUTH_KEY or a login; none.",
		),
	firewall: z
		.array(firewallRule)
		.min(1)
		.optional()
		.describe("Exactly what ufw lets in. App server: 22/tcp limit, 80/tcp, 443/tcp, 41641/udp."),
	workers: z.int().min(1).max(3).optional().describe("How many ComfyUI workers a GPU worker runs; 1."),
})

const shareSchema = z.strictObject({
	mount: z
		.string()
		.min(1, `is empty${fixMark}copy it from the console`)
		.optional()
		.describe("The mount command as the console prints it."),
	filesystem: z
		.enum(["nfs4", "bind", "directory"])
		.default("nfs4")
		.describe("bind and directory are stand-ins (need allowStandIns)."),
	directory: anyPath.optional().describe("With filesystem: directory; relative to this file."),
	backups: relativePath.default("cache/backups").describe("Below the mount point."),
	models: relativePath
		.default("models/shared")
		.describe("Below the mount point: the directory that holds checkpoints, loras, vae, …"),
})

const bucketSchema = z.strictObject({
	bucket: bucketName,
	endpoint: z.string().min(1).describe("https://<account id>.eu.r2.cloudflarestorage.com"),
	jurisdiction: z
		.enum(["eu", "default"])
		.default("eu")
		.describe("default: the bucket was made without a jurisdiction, its endpoint has no .eu."),
})

const objectStoreSchema = z.strictObject({
	provider: z.enum(["r2", "s3"]),
	region: z
		.string()
		.regex(/^[a-z0-9-]+$/)
		.default("auto"),
	buckets: z.strictObject({
		cache: bucketSchema,
		models: bucketSchema.optional(),
		images: bucketSchema.optional(),
		userFiles: bucketSchema.optional(),
	}),
})

const repositorySchema = z.strictObject({
	remote: z.string().min(1).describe("Without a token; GH_TOKEN goes through git's credential helper."),
	branch: branch.describe("The branch that this environment may run."),
	path: absolutePath.describe("Where it is checked out on the host."),
	commit: commit.optional().describe("Pins the checkout to one commit."),
})

const port = z.int().min(1).max(65_535)

const imageName = text(
	/^(?!latest$)[a-z0-9][a-z0-9._/:-]*[:@](?!latest$)[A-Za-z0-9._:-]+$/,
	"is not an image with a tag or a digest",
	"as in node:24-slim",
)

/** The extensions of ComfyUI's frontend that come with the image (templates/stack/frontend/custom_nodes). */
export const frontendExtensions = [
	"queue-redirect",
	"default-workflow",
	"status-banner",
	"console-reports",
] as const

const stackSchema = z.strictObject({
	directory: absolutePath
		.default("/etc/comfyume/stack")
		.describe("Where generate-users renders to. Holds secrets: outside of git."),
	users: z.int().min(1).max(500).default(20).describe("How many users a new roster begins with."),
	adminName: text(/^(?!user\d)[a-z][a-z0-9_-]{0,31}$/, "is not a name for the admin", "as in admin").default(
		"admin",
	),
	nginx: z
		.enum(["container", "host"])
		.default("container")
		.describe(
			"host: the machine's own nginx takes ports 80 and 443; the stack's services listen on 127.0.0.1.",
		),
	inferenceMode: z.enum(["local", "redis", "serverless"]).default("redis"),
	vpnAddress: tailscaleAddress
		.optional()
		.describe(
			"With GPU workers elsewhere: the app server's Tailscale address, where Redis and queue manager listen.",
		),
	paths: z
		.strictObject({
			models: absolutePath.default("/mnt/sfs/models"),
			outputs: absolutePath.default("/mnt/scratch/outputs"),
			inputs: absolutePath.default("/mnt/scratch/inputs"),
			shareOutputs: absolutePath
				.default("/mnt/sfs/outputs")
				.describe("Where GPU workers write; the queue manager brings it from there to the users."),
			workflows: absolutePath.default("/home/dev/comfyume-v1/data/workflows"),
			certificates: absolutePath
				.default("/etc/comfyume/certificates")
				.describe("Holds cert.pem and key.pem."),
			acme: absolutePath.default("/var/www/certbot").describe("The webroot of ACME challenges."),
		})
		.prefault({}),
	ports: z
		.strictObject({
			http: port.default(80),
			https: port.default(443),
			firstUser: z
				.int()
				.min(1024)
				.max(65_000)
				.default(8188)
				.describe("user001's; only with nginx: host, on 127.0.0.1."),
		})
		.prefault({}),
	certificates: z
		.strictObject({
			source: z
				.enum(["mounted", "acme"])
				.default("mounted")
				.describe("mounted: bought and installed by hand; acme: issued and renewed by certbot."),
			email: text(/^[^@\s]+@[^@\s]+\.[^@\s]+$/, "is not an address for mail", "as in ops@example.test")
				.optional()
				.describe("Where the authority writes to when a certificate is about to end."),
			server: z
				.url({ protocol: /^https$/ })
				.default("https://acme-v02.api.letsencrypt.org/directory")
				.describe("The ACME server's directory."),
			directory: absolutePath.default("/etc/letsencrypt").describe("certbot's own: accounts and keys."),
		})
		.prefault({}),
	images: z
		.strictObject({
			node: imageName.default("node:24-slim"),
			python: imageName.default("python:3.12-slim-bookworm"),
			nginx: imageName.default("nginx:1.28-alpine"),
			redis: imageName.default("redis:7-alpine"),
		})
		.prefault({})
		.describe("What the images that are built here begin with, and those that are taken as they are."),
	monitoring: z
		.strictObject({
			address: tailscaleAddress.describe("Where its pages are seen: this machine's Tailscale address."),
			retentionDays: z.int().min(1).max(400).default(15),
			images: z
				.strictObject({
					prometheus: imageName.default("prom/prometheus:v3.5.0"),
					grafana: imageName.default("grafana/grafana:12.1.1"),
					loki: imageName.default("grafana/loki:3.5.3"),
					promtail: imageName.default("grafana/promtail:3.5.3"),
					cadvisor: imageName.default("gcr.io/cadvisor/cadvisor:v0.52.1"),
					portainer: imageName.default("portainer/agent:2.33.1"),
				})
				.prefault({}),
		})
		.optional()
		.describe("Prometheus, Grafana, Loki, cAdvisor and Portainer's agent, as a compose profile."),
	network: text(
		/^(10|172|192)\.(\d{1,2}|1\d\d|2[0-4]\d|25[0-5])\.(0|32|64|96|128|160|192|224)\.0\/19$/,
		"is not a network of /19",
		"as in 10.213.0.0/19",
	)
		.default("10.213.0.0/19")
		.describe("Each user's own network is cut out of it, 16 addresses each."),
	maxBodyMegabytes: z.int().min(1).max(1_000_000).default(10_000),
	apiTimeoutSeconds: z.int().min(10).max(3600).default(600),
	hstsSeconds: z
		.int()
		.min(0)
		.default(31_536_000)
		.describe("0 while the certificate is self-signed: browsers then offer no way past it."),
	extensions: z
		.array(z.enum(frontendExtensions))
		.default([...frontendExtensions])
		.describe("What is on in every user's page; [] for ComfyUI as it is."),
	defaultWorkflow: text(
		/^[^/\\\0]{1,200}$/,
		"is not a workflow's name",
		"give the name of a file in paths.workflows, as in first-steps.json",
	)
		.optional()
		.describe("What a user's first page begins with; the first of paths.workflows when it isn't given."),
})

const webAddress = text(
	/^https?:\/\/[^/?#@\s]+(\/[^?#\s]*)?$/i,
	"is not an address without credentials and query",
	"as in https://hc.example.test",
)

/** Whom runs with --notify tell how they ended. Each part is for itself: what can't be told hurts nothing else. */
export const notificationsSchema = z.strictObject({
	healthchecks: z
		.strictObject({ url: webAddress.default("https://hc-ping.com").describe("Without the ping key.") })
		.optional()
		.describe("Begin, success and failure by the convention of healthchecks.io; HEALTHCHECKS_PING_KEY."),
	ntfy: z
		.strictObject({
			url: webAddress.default("https://ntfy.sh").describe("Without the topic."),
			priority: z.enum(["min", "low", "default", "high", "max"]).default("high"),
		})
		.optional()
		.describe("Failures, to the topic NTFY_TOPIC."),
	textfiles: z
		.strictObject({ directory: absolutePath.describe("On the host; what node_exporter is told to read.") })
		.optional()
		.describe("Figures for Prometheus, by node_exporter's textfile collector."),
})

const packagesSchema = z
	.strictObject({
		extra: z.array(debianPackage).default([]).describe("Beside those that comfyume needs."),
		tailscale: z
			.strictObject({
				repository: webAddress
					.default("https://pkgs.tailscale.com/stable")
					.describe("The vendor's repository; the distribution's name is put behind it."),
				keySha256: text(/^[0-9a-f]{64}$/, "is not a sha256", "64 small hexadecimal digits")
					.optional()
					.describe("Of the repository's key file; without it the key is trusted as it comes over TLS."),
			})
			.prefault({}),
	})
	.prefault({})
	.describe("What a restore installs by apt.")

const environmentSchema = z.strictObject({
	domain,
	hosts: z.array(hostSchema).min(1, `has no host${fixMark}add one with name, role and address`),
	share: shareSchema.optional(),
	scratch: z
		.strictObject({
			device: text(/^\/dev\/[A-Za-z0-9/_.-]+$/, "is not a device", "as in /dev/vdb"),
			path: absolutePath.default("/mnt/scratch"),
		})
		.optional()
		.describe("Mounted by its device path: cloned disks share their UUIDs."),
	objectStore: objectStoreSchema.optional(),
	git: z.strictObject({ project: repositorySchema, scripts: repositorySchema }),
	user: userName.default("dev").describe("The platform's own user on the host."),
	operators: z
		.array(publicKey)
		.default([])
		.describe("SSH public keys that a restore lets in, first of all: root and the platform's user."),
	packages: packagesSchema,
	keyring: z
		.boolean()
		.default(false)
		.describe("Also load the host's secrets into the kernel's keyring, at each boot."),
	stack: stackSchema.optional().describe("What generate-users and env render the compose project from."),
	notifications: notificationsSchema.optional().describe("Whom runs with --notify tell how they ended."),
	directories: z
		.strictObject({
			local: absolutePath.default("/root/comfyume-backups").describe("Where restore looks first."),
		})
		.prefault({}),
	allowStandIns: z
		.boolean()
		.default(false)
		.describe("Directories may stand in for machines and shares. Never in production."),
	allowPlainHttp: z.boolean().default(false).describe("http to other machines. Never in production."),
	backups: z
		.strictObject({
			without: z
				.array(text(/^[a-z][a-z0-9-]{1,40}$/, "is not an artifact's name", "as in nginx"))
				.default([])
				.describe("Artifacts of the catalogue that this environment doesn't have, or has no more."),
			recipients: z
				.array(ageRecipient)
				.default([])
				.describe("age public keys: whom backups of keys and passwords are encrypted for."),
		})
		.prefault({}),
	restore: z
		.strictObject({ refuseOlderThanHours: z.number().positive().default(72) })
		.prefault({})
		.describe("A snapshot older than this needs to be asked for with --at."),
})

export const configurationSchema = z.strictObject({
	version: z.literal(1).describe("The version of this file's format."),
	environments: z.record(
		text(/^[a-z][a-z0-9-]{0,30}$/, "is not an environment's name", "use small letters, digits and -"),
		environmentSchema,
	),
})

/** What the file says, with defaults filled in. */
export type WrittenConfiguration = z.output<typeof configurationSchema>
export type WrittenEnvironment = z.output<typeof environmentSchema>

type HostCommon = {
	name: string
	role: "app" | "worker"
	/** `SHA256:…` of the identity that comes back with a restore. */
	hostKeys: readonly string[]
	tailscaleAddress?: string
	/** How it comes to its place in the tailnet. */
	tailnet: "identity" | "join" | "none"
	firewall: readonly FirewallRule[]
	/** How many ComfyUI workers a GPU worker runs; 0 on an app server. */
	workers: number
}

/** What ufw lets in. `limit` slows down who tries often. */
export type FirewallRule = { port: number; protocol: "tcp" | "udp"; limit: boolean }

export type HostConfiguration =
	| (HostCommon & {
			connection: "ssh"
			address: string
			port: number
			user: string
			/** `~` is expanded where the home directory is known. */
			keyFiles: readonly string[]
	  })
	/** A directory that stands in for the machine; an absolute path on this one. */
	| (HostCommon & { connection: "directory"; directory: string })

export type ShareConfiguration = {
	/** Whose share it is: what the file ENVIRONMENT in its root must name. */
	environment: string
	/** Where the share's files are seen: the mount command's target, or the directory that stands in for it. */
	mountPoint: string
	/** Relative to the mount point. */
	backups: string
	/** Relative to the mount point: the directory that holds checkpoints, loras, vae, … */
	models: string
} & ({ filesystem: "nfs4" | "bind"; mount: MountCommand } | { filesystem: "directory"; directory: string })

export type BucketConfiguration = { bucket: string; endpoint: string; jurisdiction: Jurisdiction }

export const bucketNames = ["cache", "models", "images", "userFiles"] as const
export type BucketName = (typeof bucketNames)[number]

type ObjectStoreConfiguration = {
	provider: "r2" | "s3"
	region: string
	buckets: { cache: BucketConfiguration } & Partial<Record<BucketName, BucketConfiguration>>
}

type RepositoryConfiguration = { remote: string; branch: string; path: string; commit?: string }

/** With every default filled in. */
export type StackConfiguration = z.output<typeof stackSchema>

export type NotificationsConfiguration = z.output<typeof notificationsSchema>

export type Environment = {
	name: string
	domain: string
	hosts: readonly HostConfiguration[]
	share?: ShareConfiguration
	scratch?: { device: string; path: string }
	objectStore?: ObjectStoreConfiguration
	git: { project: RepositoryConfiguration; scripts: RepositoryConfiguration }
	/** The platform's own user on the host. */
	user: string
	/** Lines of `authorized_keys`. */
	operators: readonly string[]
	packages: z.output<typeof packagesSchema>
	keyring: boolean
	stack?: StackConfiguration | undefined
	notifications?: NotificationsConfiguration | undefined
	directories: { local: string }
	allowStandIns: boolean
	allowPlainHttp: boolean
	/** `recipients`: whom identity and secrets are encrypted for; nobody: they lie in the clear. */
	backups: { without: readonly string[]; recipients: readonly string[] }
	restore: { refuseOlderThanHours: number }
}

/** An environment's stack; all defaults where the file says nothing of it. */
export const stackOf = ({ stack }: Environment): StackConfiguration => stack ?? stackSchema.parse({})

export type Configuration = {
	version: 1
	environments: Readonly<Record<string, Environment>>
}
