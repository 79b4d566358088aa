// What of a running workshop can only be asked of the workshop itself: the door as its users find it, Redis, the images,
// the files that are mounted, what each frontend loads.
import { createHash } from "node:crypto"
import { join } from "node:path"
import { z } from "zod"
import { exitCodes, OperatorError } from "../errors.ts"
import { readEnvFile } from "../formats/env-file.ts"
import { isCurrentHash, readHtpasswd } from "../formats/htpasswd.ts"
import { command, withOptions } from "../host/command.ts"
import { type Finding, needed, type Step, satisfied } from "../plan/step.ts"
import { Secret } from "../secret.ts"
import { type Credentials, readCredentials } from "../stack/credentials.ts"
import { files } from "../stack/description.ts"
import { askDoor, type DoorAnswer } from "../stack/front.ts"
import { requirePlaces } from "../stack/host-places.ts"
import { appServerSeenFrom, askQueueManager, pingRedis } from "../stack/queue-health.ts"
import { whyNoPong } from "../stack/redis-ping.ts"
import { userId } from "../stack/roster.ts"
import { composePlaces, placesOf } from "../stack/services.ts"
import { readIfThere } from "../stack/write.ts"
import type { StepContext } from "./context.ts"
import type { OpenStack } from "./stack.ts"
import { hostNginxState } from "./stack-nginx.ts"

/** A line of the checklist: its check alone. */
export const line = (id: string, title: string, asked: string, check: Step["check"]): Step => ({
	...{ id, title, asked, check },
	apply: () => Promise.reject(new Error("looking changes nothing")),
})

/** Everything that is mounted is what it should be, and the passwords are those of the roster. */
export const filesLine = (context: StepContext, { stack, services, roster }: OpenStack): Step =>
	line("files", "files of the stack", "stat of every mounted file; htpasswd's names", async () => {
		const { directory, adminName } = stack.configuration
		if (roster.length === 0)
			return needed("nobody is in the roster", `comfyume restore ${context.spoken} --only stack`)
		const places = [...composePlaces(stack), ...services.flatMap((service) => placesOf(stack, service))]
		const distinct = [...new Map(places.map((place) => [place.path, place])).values()]
		await requirePlaces(distinct.map((place) => ({ ...place, hint: `${place.hint} ${context.spoken}` })))
		const { hashes, badLines } = readHtpasswd(await readIfThere(join(directory, files.htpasswd)))
		const hint = `comfyume generate-users ${context.spoken}`
		if (badLines.length > 0) return needed(`${files.htpasswd}: line ${badLines[0]} is no user's`, hint)
		const wanted = [...roster.map(userId), adminName]
		const absent = wanted.filter((name) => !hashes.has(name))
		if (absent.length > 0) return needed(`${absent.join(", ")} can't log in: not in ${files.htpasswd}`, hint)
		const more = [...hashes.keys()].filter((name) => !wanted.includes(name))
		if (more.length > 0) return needed(`${more.join(", ")} can log in, and is not in the roster`, hint)
		const weak = [...hashes].filter(([, hash]) => !isCurrentHash(hash))
		if (weak.length > 0) return needed(`${weak[0]?.[0]}'s hash is not bcrypt of cost 10`, hint)
		return satisfied(`${distinct.length} files and directories, ${wanted.length} names`)
	})

/** Each service's image is in Docker. */
export const imagesLine = (context: StepContext, { docker, services }: OpenStack): Step =>
	line("images", "container images", "docker image inspect", async () => {
		const wanted = [...new Set(services.map(({ image }) => image))]
		const { images } = await docker.expected(wanted)
		const absent = wanted.filter((image) => !images.has(image))
		if (absent.length > 0)
			return needed(
				`not there: ${absent.join(", ")}`,
				`comfyume restore ${context.spoken} --only container-images`,
			)
		return satisfied(`all ${wanted.length} are there`)
	})

/** Redis knows the password of the env file. */
export const redisLine = (context: StepContext, { stack }: OpenStack): Step => {
	const place = { host: "127.0.0.1", port: stack.services.redis.hostPort }
	return line("redis", "Redis", `AUTH, PING at ${place.host}:${place.port}`, async () => {
		const file = join(stack.configuration.directory, files.environment)
		const password = readEnvFile(await readIfThere(file)).entries.find(
			({ name }) => name === "REDIS_PASSWORD",
		)?.value
		if (password === undefined || password === "")
			return needed(`${file} has no REDIS_PASSWORD`, `comfyume generate-users ${context.spoken}`)
		const why = await whyNoPong(place, new Secret(password))
		return why === undefined ? satisfied("PONG") : needed(why, `comfyume logs redis ${context.spoken}`)
	})
}

/** Redis over the VPN. A GPU host has no password of it: that it asks for one is right. */
export const redisAfarLine = (context: StepContext, { stack }: OpenStack): Step =>
	line("redis", "the app server's Redis", "PING over the VPN, without a password", async () => {
		const asked = await pingRedis(stack, undefined)
		if ("why" in asked) return needed(`${asked.address}: ${asked.why}`, afar(context, stack))
		return satisfied(`${asked.address} answers, and lets nobody in without its password`)
	})

/** The queue manager over the VPN, which the workers take their jobs from. */
export const queueAfarLine = (context: StepContext, { stack }: OpenStack): Step =>
	line("queue", "the app server's queue manager", "/health over the VPN", async () => {
		const asked = await askQueueManager(stack, { signal: context.signal })
		const hint = afar(context, stack)
		if ("why" in asked) return needed(`${asked.address} gives no answer: ${asked.why}`, hint)
		const { status, redis_connected: connected } = asked.health
		return status === "healthy" && connected === true
			? satisfied(`${asked.address}: healthy, Redis connected`)
			: needed(`${asked.address} is ${status}${connected === true ? "" : ", and has no Redis"}`, hint)
	})

const afar = ({ environment }: StepContext, stack: OpenStack["stack"]) =>
	`tailscale ping ${appServerSeenFrom(stack)}; comfyume status --env ${environment.name} --host NAME, of the app server`

// One that Docker had to start again by itself, and that hasn't run for so long since.
const steadyMs = 5 * 60_000

/** No container is in a restart loop: a health check that passes now and then isn't enough. */
export const restartsLine = (context: StepContext, { docker, services }: OpenStack): Step =>
	line("restarts", "restarts", "docker inspect: RestartCount, StartedAt", async () => {
		const containers = await docker.look()
		const unsteady = services.flatMap(({ container }) => {
			const found = containers.get(container)
			if (found === undefined || found.restarts === 0) return []
			const since = found.startedAt?.getTime() ?? context.now().getTime()
			return context.now().getTime() - since < steadyMs
				? [`${container} was started again ${found.restarts} times, last less than 5 minutes ago`]
				: []
		})
		if (unsteady.length > 0) return needed(unsteady.join("; "), `comfyume logs ${context.spoken}`)
		return satisfied("none in the last 5 minutes")
	})

type Asking = { context: StepContext; open: OpenStack }
type Login = { name: string; password: Secret }

const whereOf = ({ open: { stack } }: Asking) =>
	`https://${stack.domain}${stack.configuration.ports.https === 443 ? "" : `:${stack.configuration.ports.https}`}`

/** @throws {OperatorError} (4) when the door gives no answer at all */
async function ask(asking: Asking, path: string, as?: Login): Promise<DoorAnswer> {
	const { context, open } = asking
	const answer = await askDoor({
		...{ domain: open.stack.domain, port: open.stack.configuration.ports.https, path },
		signal: context.signal,
		timeoutMs: 15_000,
		...(as === undefined ? {} : { as }),
	})
	if (typeof answer !== "string") return answer
	throw new OperatorError(`${whereOf(asking)}${path} gives no answer here: ${answer}`, {
		exitCode: exitCodes.incomplete,
		hint: `comfyume start ${context.spoken} --only nginx`,
	})
}

/** What everybody may see is seen, and nothing else without a password. */
export const doorLine = (context: StepContext, open: OpenStack): Step => {
	const asking = { context, open }
	const user = userId(open.roster[0] ?? 1)
	const wanted: readonly [path: string, allowed: readonly number[], as?: Login][] = [
		["/", [401]],
		["/health", [200]],
		["/health/ping", [200]],
		[`/${user}/`, [401]],
		["/admin/", [401]],
		// The gate has had enough wrong ones lately, of checklists too: it refuses all the same.
		[`/${user}/`, [401, 429], { name: user, password: new Secret("surely-not-the-password") }],
	]
	const asked = `${whereOf(asking)}: /, /health, /admin/, /${user}/ without and with a wrong password`
	return line("door", "the door", asked, async () => {
		const answers = await Promise.all(
			wanted.map(async ([path, allowed, as]) => ({
				path,
				allowed,
				as,
				got: (await ask(asking, path, as)).status,
			})),
		)
		const wrong = answers.filter(({ allowed, got }) => !allowed.includes(got))
		const say = ({ path, as, got }: (typeof answers)[number]) =>
			`${path}${as === undefined ? "" : " (wrong password)"} ${got}`
		if (wrong.length > 0)
			return needed(
				wrong.map((one) => `${say(one)}, not ${one.allowed[0]}`).join("; "),
				`comfyume logs nginx ${context.spoken}`,
			)
		return satisfied(answers.map(say).join(", "))
	})
}

const healthSchema = z.object({
	status: z.string(),
	redis_connected: z.boolean().optional(),
	inference_mode: z.string().optional(),
})

/** The queue manager, through the door. */
export const queueLine = (context: StepContext, open: OpenStack): Step => {
	const asking = { context, open }
	const { directory, adminName } = open.stack.configuration
	return line("queue", "the queue manager", `${whereOf(asking)}/api/health`, async () => {
		const where = join(directory, files.credentials)
		const password = readCredentials(await readIfThere(where), { where, adminName }).get(adminName)
		if (password === undefined)
			return needed(`${adminName} has no password`, `comfyume generate-users ${context.spoken}`)
		const { status, body } = await ask(asking, "/api/health", { name: adminName, password })
		const hint = `comfyume logs queue-manager ${context.spoken}`
		const health = healthSchema.safeParse(parse(body)).data
		if (status === 401 || status === 403)
			return needed(
				`the door doesn't let ${adminName} in (${status}): it can't be asked`,
				`comfyume generate-users ${context.spoken}`,
			)
		if (status !== 200 || health === undefined)
			return needed(`it answers ${status}${health === undefined ? ", and not as a queue manager" : ""}`, hint)
		if (health.redis_connected !== true) return needed("it has no Redis", hint)
		if (health.status !== "healthy") return needed(`it is ${health.status}`, hint)
		const { inferenceMode } = open.stack.configuration
		if (health.inference_mode !== inferenceMode)
			return needed(`it works for ${health.inference_mode}, and comfyume.yaml says ${inferenceMode}`, hint)
		return satisfied(`healthy, Redis connected, ${inferenceMode}`)
	})
}

function parse(text: string): unknown {
	try {
		return JSON.parse(text)
	} catch {
		return undefined
	}
}

// The auth gate compares two at a time; more would only wait there.
const atOnce = 4

/** Each user gets in by the own password, and into nobody else's page; so does the admin. */
export const usersLine = (context: StepContext, open: OpenStack): Step => {
	const asking = { context, open }
	const { directory, adminName } = open.stack.configuration
	const asked = `${whereOf(asking)}: each one's page, and a neighbour's`
	return line("users", "users' logins", asked, async (): Promise<Finding> => {
		const where = join(directory, files.credentials)
		const credentials = readCredentials(await readIfThere(where), { where, adminName })
		const ids = open.roster.map(userId)
		if (ids.length === 0)
			return needed("nobody is in the roster", `comfyume generate-users ${context.spoken}`)
		const wrong: string[] = []
		const work = [...ids, adminName]
		const next = work.values()
		await Promise.all(
			Array.from({ length: atOnce }, async () => {
				for (const name of next) wrong.push(...(await loginFaults(asking, credentials, name, ids)))
			}),
		)
		if (wrong.length > 0)
			return needed(
				`${wrong.sort().slice(0, 5).join("; ")}${wrong.length > 5 ? `; and ${wrong.length - 5} more` : ""}`,
				`comfyume status ${context.spoken}; comfyume generate-users ${context.spoken}`,
			)
		return satisfied(`${ids.length} users and ${adminName} get in, each into the own page alone`)
	})
}

async function loginFaults(
	asking: Asking,
	credentials: Credentials,
	name: string,
	ids: readonly string[],
): Promise<string[]> {
	const password = credentials.get(name)
	if (password === undefined) return [`${name} has no password`]
	const as = { name, password }
	const isUser = ids.includes(name)
	const own = await ask(asking, isUser ? `/${name}/` : "/admin/", as)
	const faults = own.status === 200 ? [] : [`${name} gets ${own.status}`]
	const neighbour = ids[(ids.indexOf(name) + 1) % ids.length]
	if (!isUser || neighbour === undefined || neighbour === name) return faults
	const other = await ask(asking, `/${neighbour}/`, as)
	// The gate has had enough wrong ones lately: that is no way in either.
	return [401, 403, 429].includes(other.status)
		? faults
		: [...faults, `${name} gets ${other.status} at ${neighbour}`]
}

/** What the image brings for ComfyUI lies in each user's directory as the image has it; users' own is left alone. */
export const extensionsLine = (context: StepContext, open: OpenStack): Step =>
	line(
		"extensions",
		"frontends' extensions",
		"sha256 of each file, in the image and for each user",
		async () => {
			const { host } = context
			const { directory } = open.stack.configuration
			const [first] = open.stack.users
			if (first === undefined)
				return needed("nobody is in the roster", `comfyume generate-users ${context.spoken}`)
			const seeds = "cd /opt/comfyume/custom_nodes && find . -type f -exec sha256sum {} +"
			const asked = command("docker", "exec", first.container, "sh", "-c", seeds)
			const { stdout } = await host.capture(withOptions(asked, { timeoutMs: 30_000 }))
			const shipped = stdout.split("\n").flatMap((text): [path: string, digest: string][] => {
				const [, digest = "", path] = /^([0-9a-f]{64}) [ *]\.\/(.+)$/.exec(text) ?? []
				// Python writes these where it runs.
				return path === undefined || path.includes("__pycache__") ? [] : [[path, digest]]
			})
			if (shipped.length === 0)
				return needed(
					`the image of ${first.container} brings none`,
					`docker exec ${first.container} ls /opt/comfyume/custom_nodes`,
				)
			const wrong: string[] = []
			for (const { id } of open.stack.users) {
				const nodes = join(directory, "user_data", id, "comfyui/custom_nodes")
				const different = await Promise.all(
					shipped.map(async ([path, digest]) => {
						const content = await host.read(join(nodes, path))
						const found =
							content === undefined ? undefined : createHash("sha256").update(content).digest("hex")
						return found === digest
							? []
							: [`${id}: ${path} is ${found === undefined ? "missing" : "another"}`]
					}),
				)
				wrong.push(...different.flat())
			}
			if (wrong.length > 0)
				return needed(
					`${wrong.slice(0, 3).join("; ")}${wrong.length > 3 ? `; and ${wrong.length - 3} more` : ""}`,
					`comfyume restart ${context.spoken} ${wrong[0]?.split(":")[0]}   # puts them there anew`,
				)
			return satisfied(`${shipped.length} files, for ${open.stack.users.length} users each`)
		},
	)

/** Where the container's nginx serves, the machine's own doesn't hold its ports, also after a boot. */
export const hostNginxLine = (context: StepContext, open: OpenStack): Step =>
	line("host-nginx", "the machine's own nginx", "systemctl is-active, is-enabled nginx", async () => {
		const { active, enabled, inTheWay } = await hostNginxState(context, open)
		const hint = `comfyume start ${context.spoken} --only nginx`
		if (open.stack.hasNginx) {
			if (inTheWay !== undefined) return needed(inTheWay, hint)
			// Somebody may serve something else with it, at other ports.
			return satisfied(active ? "on, at other ports: the container serves" : "off: the container serves")
		}
		if (active && enabled) return satisfied("on: it serves")
		return needed(
			`it is ${active ? "running" : "not running"}, and ${enabled ? "would" : "would not"} come up at the next boot`,
			hint,
		)
	})
