// The stack's services one by one, as those who start and watch them need them: names, images, batches, what they are
// expected to use.
import { dirname, join } from "node:path"
import { byType, files, type Limits, type Stack } from "./description.ts"

export type Service = {
	/** In the compose files; also what operators call it. */
	name: string
	container: string
	image: string
	limits: Limits
	/** What it is expected to use while people work, by experience and not by measurement. */
	expectedMegabytes: number
	/** Users alone. */
	user: boolean
	/** Frontends start in batches, side by side; from 1 on. */
	batch?: number
	/** The services that must be healthy before. */
	after: readonly string[]
	/** On the host, where others may already listen. */
	ports: readonly number[]
}

const expectedMegabytes = {
	redis: 100,
	queueManager: 200,
	authGate: 100,
	admin: 100,
	nginx: 50,
	frontend: 700,
	worker: 8000,
	workerAgent: 100,
} as const

/**
 * The services of a start on the stack's host, in its order. Pure.
 * @param options.gpu on the app server, the worker beside the stack too
 */
export function servicesOf(stack: Stack, { gpu = false } = {}): Service[] {
	const { services, images, limits, users, hasNginx, configuration } = stack
	const worker = (name: string, key: "worker" | "workerAgent", after: readonly string[]): Service => ({
		name,
		container: `comfy-${name}`,
		image: images[key],
		limits: limits[key],
		expectedMegabytes: expectedMegabytes[key],
		user: false,
		after,
		ports: [],
	})
	if (stack.role === "worker")
		return stack.workers.flatMap(({ service, agent }) => [
			worker(service, "worker", []),
			worker(agent.service, "workerAgent", [service]),
		])
	const one = (
		name: string,
		key: "redis" | "queueManager" | "authGate" | "admin" | "nginx",
		more: Partial<Service>,
	): Service => ({
		name,
		container: services[key].container,
		image: images[key],
		limits: limits[key],
		expectedMegabytes: expectedMegabytes[key],
		user: false,
		after: [],
		ports: [],
		...more,
	})
	let batch = 0
	const frontends = users.map((user): Service => {
		if (user.after === undefined) batch++
		return {
			name: user.id,
			container: user.container,
			image: images.frontend,
			limits: user.limits,
			expectedMegabytes: expectedMegabytes.frontend,
			user: true,
			batch,
			after: ["queue-manager", ...(user.after === undefined ? [] : [user.after])],
			ports: hasNginx ? [] : [user.hostPort],
		}
	})
	return [
		one("redis", "redis", { ports: [services.redis.hostPort] }),
		one("queue-manager", "queueManager", { after: ["redis"], ports: [services.queueManager.hostPort] }),
		one("auth-gate", "authGate", { ports: hasNginx ? [] : [services.authGate.hostPort] }),
		one("admin", "admin", { ports: hasNginx ? [] : [services.admin.hostPort] }),
		...(hasNginx
			? [
					one("nginx", "nginx", {
						after: ["queue-manager", "auth-gate"],
						ports: [configuration.ports.http, configuration.ports.https],
					}),
				]
			: []),
		...(gpu
			? [worker("worker", "worker", ["queue-manager"]), worker("worker-agent", "workerAgent", ["worker"])]
			: []),
		...frontends,
	]
}

/** A file or directory that is mounted into a container, or that compose itself reads. */
export type Place = { path: string; kind: "file" | "directory"; hint: string }

/** What compose reads: without it nothing starts. Pure. */
export const composePlaces = (stack: Stack): Place[] =>
	[...composeFilesOf(stack), files.environment].map((file) => rendered(stack, file))

/** The compose files of a host by its role, the one that is given to compose first. Pure. */
export const composeFilesOf = ({ role }: Pick<Stack, "role">): readonly [string, ...string[]] =>
	role === "worker" ? [files.composeWorker] : [files.compose, files.composeUsers]

/** What must be there for one service, and as what. Pure. */
export function placesOf(stack: Stack, { name, user }: Pick<Service, "name" | "user">): Place[] {
	const { directory, paths } = stack.configuration
	const whole = (path: string): Place => ({
		path,
		kind: "directory",
		hint: `ls -ld ${path}; findmnt ${path}`,
	})
	if (user) {
		const mounts = stack.users.find(({ id }) => id === name)?.mounts ?? []
		const own = new Set([`${directory}/${files.modelPaths}`])
		return mounts.map(({ from }) =>
			own.has(from)
				? rendered(stack, files.modelPaths)
				: {
						path: from,
						kind: "directory",
						hint:
							from.includes(`/${name}`) || from.startsWith(directory) || from.endsWith(byType)
								? "comfyume generate-users"
								: `ls -ld ${from}; findmnt ${dirname(from)}`,
					},
		)
	}
	// Those of a GPU host have a number.
	switch (name.replace(/^(worker|worker-agent)-\d+$/, "$1")) {
		case "redis":
			return [rendered(stack, files.redis)]
		case "queue-manager":
			return [whole(paths.outputs), whole(paths.inputs), whole(paths.shareOutputs)]
		case "auth-gate":
			return [rendered(stack, files.htpasswd)]
		case "nginx":
			return [
				...[
					...(stack.hasNginx ? [files.nginx, files.nginxSite] : [files.nginxHostSite]),
					...[files.proxySecret, files.health],
				].map((file) => rendered(stack, file)),
				...["cert.pem", "key.pem"].map((file): Place => {
					const path = join(paths.certificates, file)
					return { path, kind: "file", hint: `put the certificate's ${file} there; ls -l ${path}` }
				}),
				{ path: paths.acme, kind: "directory", hint: `mkdir -p ${paths.acme}` },
				whole(paths.outputs),
			]
		case "worker":
			return [
				whole(paths.models),
				whole(paths.shareOutputs),
				rendered(stack, stack.role === "worker" ? files.workerModelPaths : files.modelPaths),
			]
		case "worker-agent":
			return [whole(paths.shareOutputs)]
		default:
			return []
	}
}

/**
 * The rendered files that a service reads once, when it starts. Compose's hash of its configuration doesn't know what
 * stands in them. The auth gate isn't among their readers: it takes new passwords while it runs. Pure.
 */
export const readAtStart = (stack: Stack, service: Pick<Service, "name" | "user">): string[] =>
	service.name === "auth-gate"
		? []
		: placesOf(stack, service).flatMap(({ path, kind }) =>
				kind === "file" && path.startsWith(`${stack.configuration.directory}/`) ? [path] : [],
			)

const rendered = ({ configuration }: Stack, file: string): Place => ({
	path: `${configuration.directory}/${file}`,
	kind: "file",
	hint: "comfyume generate-users",
})
