// What `comfyume init` asks, in its order: the option that answers without asking, what it is for, and what is usual.

export type QuestionName =
	| "environment"
	| "domain"
	| "role"
	| "host"
	| "address"
	| "port"
	| "user"
	| "tailscale"
	| "mount"
	| "scratchDevice"
	| "scratchPath"
	| "r2Account"
	| "cacheBucket"
	| "modelsBucket"
	| "imagesBucket"
	| "userFilesBucket"
	| "otherJurisdiction"
	| "platformUser"
	| "projectRemote"
	| "projectBranch"
	| "projectPath"
	| "scriptsRemote"
	| "scriptsBranch"
	| "scriptsPath"
	| "users"
	| "nginx"
	| "inferenceMode"
	| "recipients"

/** What each question was answered with; an empty text says that there is none of it. */
export type Answers = Readonly<Partial<Record<QuestionName, string>>>

export type Question = {
	name: QuestionName
	/** What answers it without asking: its flag, and what stands behind that. */
	flag: `--${string}`
	argument: string
	/** In the operator's words. */
	label: string
	forWhat: string
	example: string
	/** What Enter takes; undefined where only the operator can know. An empty one says none. */
	usual?: (answers: Answers) => string
	/** There may be none of it. */
	optional?: boolean
	/** Asked only then; else it has no answer. */
	when?: (answers: Answers) => boolean
	/** Begins a group. */
	heading?: string
}

const mayBeNone = { optional: true, usual: () => "" }
const isApp = ({ role }: Answers) => role !== "worker"
const hasStore = ({ r2Account = "" }: Answers) => r2Account !== ""

const table: Readonly<Record<QuestionName, Omit<Question, "name">>> = {
	environment: {
		...{ flag: "--env", argument: "name", label: "environment", heading: "The environment" },
		forWhat:
			"what --env names from now on, and what its backups are kept under; production, staging, testing or your own",
		example: "production",
	},
	domain: {
		...{ flag: "--domain", argument: "name", label: "domain" },
		forWhat: "where users open the workshop",
		example: "workshop.example.test",
	},
	role: {
		...{ flag: "--role", argument: "role", label: "role of its host", heading: "Its host" },
		forWhat: "app: the app server with the users; worker: a GPU worker",
		example: "app",
		usual: () => "app",
	},
	host: {
		...{ flag: "--host", argument: "name", label: "name of the host" },
		forWhat: "what reports, locks and backups call it; no other host may have it",
		example: "app-1",
		usual: ({ environment = "", role = "app" }) =>
			environment === "production" || environment === "" ? `${role}-1` : `${environment}-1`,
	},
	address: {
		...{ flag: "--address", argument: "address", label: "address of the host" },
		forWhat: "where SSH reaches it",
		example: "203.0.113.10",
	},
	port: {
		...{ flag: "--port", argument: "number", label: "SSH port" },
		forWhat: "where its SSH listens",
		example: "22",
		usual: () => "22",
	},
	user: {
		...{ flag: "--user", argument: "name", label: "login" },
		forWhat: "who comfyume logs in as; root, or a user with sudo -n",
		example: "root",
		usual: () => "root",
	},
	tailscale: {
		...{ flag: "--tailscale", argument: "address", label: "Tailscale address" },
		forWhat:
			"what `tailscale ip -4` prints there and a restore must bring back; join: it joins as a new machine",
		example: "100.89.38.43",
		...mayBeNone,
	},
	mount: {
		...{
			flag: "--mount",
			argument: "command",
			label: "mount command of the share",
			heading: "Where its data lies",
		},
		forWhat: "where backups and models lie; copy it whole, as the provider's console prints it",
		example: "sudo mount -t nfs -o nconnect=16 nfs.example.test:/share /mnt/sfs",
		...mayBeNone,
	},
	scratchDevice: {
		...{ flag: "--scratch-device", argument: "device", label: "scratch disk" },
		forWhat: "the block device for what users upload and make",
		example: "/dev/vdb",
		...mayBeNone,
	},
	scratchPath: {
		...{ flag: "--scratch-path", argument: "path", label: "mount point of the scratch disk" },
		forWhat: "where it is seen on the host",
		example: "/mnt/scratch",
		usual: () => "/mnt/scratch",
		when: ({ scratchDevice = "" }) => scratchDevice !== "",
	},
	r2Account: {
		...{ flag: "--r2-account", argument: "account", label: "account of R2" },
		forWhat: "the second place of every backup; the account's id of 32 digits, or its endpoint",
		example: "https://0123456789abcdef0123456789abcdef.eu.r2.cloudflarestorage.com",
		...mayBeNone,
	},
	cacheBucket: {
		...{ flag: "--cache-bucket", argument: "bucket", label: "bucket of backups" },
		forWhat: "what a server is restored from",
		example: "comfyume-cache-backups",
		usual: () => "comfyume-cache-backups",
		when: hasStore,
	},
	modelsBucket: {
		...{ flag: "--models-bucket", argument: "bucket", label: "bucket of models" },
		forWhat: "the vault of checkpoints, loras and the like",
		example: "comfyume-model-vault-backups",
		usual: () => "comfyume-model-vault-backups",
		optional: true,
		when: hasStore,
	},
	imagesBucket: {
		...{ flag: "--images-bucket", argument: "bucket", label: "bucket of images" },
		forWhat: "the worker's container image",
		example: "comfyume-worker-container-backups",
		usual: () => "comfyume-worker-container-backups",
		optional: true,
		when: hasStore,
	},
	userFilesBucket: {
		...{ flag: "--user-files-bucket", argument: "bucket", label: "bucket of users' files" },
		forWhat: "what users have made",
		example: "comfyume-user-files-backups",
		usual: () => "comfyume-user-files-backups",
		optional: true,
		when: hasStore,
	},
	otherJurisdiction: {
		...{
			flag: "--without-jurisdiction",
			argument: "names",
			label: "buckets without a jurisdiction",
		},
		forWhat: "their endpoint has no .eu; some of cache, models, images, userFiles, with commas",
		example: "models",
		...mayBeNone,
		when: hasStore,
	},
	platformUser: {
		...{
			flag: "--platform-user",
			argument: "name",
			label: "the platform's user",
			heading: "What runs on it",
		},
		forWhat: "whose home holds the code",
		example: "dev",
		usual: () => "dev",
	},
	projectRemote: {
		...{ flag: "--project-remote", argument: "remote", label: "git remote of the project" },
		forWhat: "where the platform's code comes from, without a token",
		example: "https://github.com/example/project.git",
	},
	projectBranch: {
		...{ flag: "--project-branch", argument: "branch", label: "branch of the project" },
		forWhat: "the only one that this environment may run",
		example: "main",
		usual: () => "main",
	},
	projectPath: {
		...{ flag: "--project-path", argument: "path", label: "place of the project" },
		forWhat: "where the host has it",
		example: "/home/dev/comfyume-v1",
		usual: ({ platformUser = "dev" }) => `/home/${platformUser}/comfyume-v1`,
	},
	scriptsRemote: {
		...{ flag: "--scripts-remote", argument: "remote", label: "git remote of the scripts" },
		forWhat: "the operators' own scripts, without a token",
		example: "https://github.com/example/scripts.git",
	},
	scriptsBranch: {
		...{ flag: "--scripts-branch", argument: "branch", label: "branch of the scripts" },
		forWhat: "the only one that this environment may run",
		example: "main",
		usual: ({ projectBranch = "main" }) => projectBranch,
	},
	scriptsPath: {
		...{ flag: "--scripts-path", argument: "path", label: "place of the scripts" },
		forWhat: "where the host has them",
		example: "/home/dev/comfyume-scripts",
		usual: ({ platformUser = "dev" }) => `/home/${platformUser}/comfyume-scripts`,
	},
	users: {
		...{ flag: "--users", argument: "number", label: "users" },
		forWhat: "how many the workshop begins with",
		example: "20",
		usual: () => "20",
		when: isApp,
	},
	nginx: {
		...{ flag: "--nginx", argument: "mode", label: "nginx" },
		forWhat: "container, or host: the machine's own nginx takes ports 80 and 443",
		example: "container",
		usual: () => "container",
		when: isApp,
	},
	inferenceMode: {
		...{ flag: "--inference", argument: "mode", label: "inference" },
		forWhat: "where jobs are computed: local, redis (GPU workers fetch them) or serverless",
		example: "redis",
		usual: () => "redis",
		when: isApp,
	},
	recipients: {
		...{
			flag: "--recipients",
			argument: "keys",
			label: "age public keys",
			heading: "Who can read its backups",
		},
		forWhat:
			"without one, keys and passwords lie in the clear on the share and in R2; with commas. Make a pair with age-keygen on another machine, whose private half stays there",
		example: "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p",
		...mayBeNone,
	},
}

/** In the order in which they are asked. */
export const questions: readonly Question[] = Object.entries(table).map(([name, question]) => ({
	name: name as QuestionName,
	...question,
}))
