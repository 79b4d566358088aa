// All files of a stack, in the order in which they are written: the passwords first, so that no later file can hold one
// that nobody has.
import type { Secret } from "../secret.ts"
import { renderCompose, renderComposeUsers } from "./compose.ts"
import { renderComposeWorker } from "./compose-worker.ts"
import { byType, directoriesOf, files, modelTypes, type Stack } from "./description.ts"
import { renderMonitoring } from "./monitoring.ts"
import {
	nginxPlaces,
	renderHealthPage,
	renderNginxMain,
	renderNginxSite,
	renderProxySecret,
} from "./nginx.ts"
import { tokensFile } from "./workers.ts"

export type StackFile = {
	/** Relative to the stack's directory. */
	path: string
	text: string
	mode: number
	/** Its text is never shown. */
	secret: boolean
}

export type SecretTexts = {
	credentials: string
	environment: string
	htpasswd: string
	proxySecret: Secret
	/** Of each GPU host's workers. */
	workerTokens: readonly { host: string; text: string }[]
}

const secret = (path: string, text: string) => ({ path, text, mode: 0o600, secret: true })
const open = (path: string, text: string) => ({ path, text, mode: 0o644, secret: false })

/** Every file of a GPU host. Pure. */
export const renderWorkerFiles = (stack: Stack, environment: string): StackFile[] => [
	secret(files.environment, environment),
	open(files.workerModelPaths, renderModelPaths("/models")),
	open(files.composeWorker, renderComposeWorker(stack)),
]

/** Every file of the app server. Pure. */
export function renderFiles(stack: Stack, texts: SecretTexts): StackFile[] {
	const places = nginxPlaces(stack)
	return [
		secret(files.credentials, texts.credentials),
		secret(files.environment, texts.environment),
		secret(files.htpasswd, texts.htpasswd),
		secret(files.proxySecret, renderProxySecret(texts.proxySecret.reveal())),
		...texts.workerTokens.map(({ host, text }) => secret(tokensFile(host), text)),
		...(stack.hasNginx ? [open(files.nginx, renderNginxMain(places))] : []),
		open(stack.hasNginx ? files.nginxSite : files.nginxHostSite, renderNginxSite(stack, places)),
		open(files.health, renderHealthPage(stack)),
		open(files.redis, renderRedis(stack)),
		open(files.modelPaths, renderModelPaths("/models")),
		// For rented GPUs, which have the share where it is here: to be copied onto it.
		open(files.serverlessModelPaths, renderModelPaths(stack.configuration.paths.models)),
		...renderMonitoring(stack).map(({ path, text }) => open(path, text)),
		open(files.composeUsers, renderComposeUsers(stack)),
		open(files.compose, renderCompose(stack)),
		open(files.directories, renderDirectories(stack)),
	]
}

const generated = "# Written by comfyume generate-users; changes here are lost.\n"

function renderRedis({ services, limits }: Stack): string {
	// Two thirds of the container's memory: while Redis rewrites its file, it needs the rest.
	const megabytes = Math.floor((limits.redis.memoryMegabytes * 2) / 3)
	return `${generated}bind * -::*
port ${services.redis.port}
dir /data
appendonly yes
appendfsync everysec
maxmemory ${megabytes}mb
# A full Redis says so; it never forgets a job.
maxmemory-policy noeviction
`
}

/** @param models where the containers have the directory of models */
function renderModelPaths(models: string): string {
	const block = (name: string, path: string) =>
		`${name}:\n  base_path: ${quote(path)}\n${modelTypes.map((type) => `  ${type}: ${type}\n`).join("")}`
	return generated + block("shared", `${models}/shared`) + block("users", `${models}/${byType}`)
}

// Plain where it can be; JSON's strings are YAML's.
const quote = (path: string) => (/^[\w/.-]+$/.test(path) ? path : JSON.stringify(path))

const renderDirectories = (stack: Stack) =>
	generated +
	directoriesOf(stack)
		.map(({ path }) => `${path}\n`)
		.join("")
