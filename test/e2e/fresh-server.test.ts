// The world in which a restore begins with nothing: that a fresh server is what a rented one is, and goes without a trace.
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, beforeAll, expect, test } from "vitest"
import { parseConfiguration } from "../../src/lib/config/configuration.ts"
import { packagesFor } from "../../src/lib/steps/machine/packages.ts"
import { baseImages } from "../support/docker-base.ts"
import {
	type FreshServers,
	openFreshServers,
	outsideShare,
	scratchDevice,
	waitForDocker,
} from "../support/fresh-server.ts"
import { cacheDirectory } from "../support/instance/base.ts"
import type { Instance } from "../support/instance/instance.ts"
import { createWorld, sweepLeftovers, type World } from "../support/instance/world.ts"
import { describeWith } from "../support/parts.ts"
import { poll } from "../support/poll.ts"
import { run } from "../support/run.ts"

const any = { allowedExitCodes: "any" } as const

describeWith("freshServers", "a fresh server", () => {
	let directory: string
	let world: World
	let servers: FreshServers
	let server: Instance

	beforeAll(async () => {
		directory = await mkdtemp(join(tmpdir(), "comfyume-fresh-"))
		await run("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", join(directory, "key")])
		world = await createWorld()
		servers = await openFreshServers(world, {
			share: join(directory, "share"),
			authorizedKey: await readFile(join(directory, "key.pub"), "utf8"),
		})
		server = await servers.freshServer("app-1")
	})
	afterAll(async () => {
		await world?.[Symbol.asyncDispose]()
		await servers?.[Symbol.asyncDispose]()
		await rm(directory, { recursive: true, force: true })
	})

	const shell = async (script: string) =>
		(await server.run(["sh", "-ec", script], { timeoutMs: 120_000 })).stdout

	test("has Docker running, an empty disk and root's key, and nothing of ours", async () => {
		const failed = await server.run(["systemctl", "--failed", "--no-legend"])
		expect(failed.stdout).toBe("")
		const ssh = ["-i", join(directory, "key"), "-o", "BatchMode=yes", "-o", "LogLevel=ERROR"]
		const trusting = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
		const asked = await run("ssh", [...ssh, ...trusting, `root@${server.address}`, "docker info"])
		expect(asked.stdout).toMatch(/Storage Driver: overlay2/)
		expect(await shell("docker images --quiet; docker ps --all --quiet; docker volume ls --quiet")).toBe("")
		expect(await shell("stat -c '%a %U %G' /run/docker.sock")).toBe("660 root docker\n")
		expect(await shell(`blockdev --getsize64 ${scratchDevice}`)).toBe(`${2 * 2 ** 30}\n`)
		expect((await server.run(["blkid", "-p", scratchDevice], any)).exitCode).toBe(2)
		expect((await server.run(["findmnt", "/mnt/sfs"], any)).exitCode).toBe(1)
		expect(await shell("ls /etc/comfyume /opt/comfyume /home 2>&1 || true")).toMatch(
			/^(ls: .*No such file or directory\n)+\/home:\n$/,
		)
		expect((await server.run(["sh", "-c", "command -v tailscale redis-cli certbot"], any)).exitCode).not.toBe(
			0,
		)
	})

	test("installs what a restore wants by the real apt, from the local repositories", async () => {
		const { environments } = parseConfiguration(
			`version: 1
environments:
  testing:
    domain: testing.example.test
    allowStandIns: true
    allowPlainHttp: true
    hosts: [{ name: app-1, role: app, address: ${server.address}, tailnet: join }]
    git:
      project: { remote: "https://git.example.test/p.git", branch: main, path: /home/dev/project }
      scripts: { remote: "https://git.example.test/p.git", branch: main, path: /home/dev/scripts }
${servers.configuration}`,
			"/etc/comfyume/comfyume.yaml",
		)
		const environment = environments["testing"]
		const hostConfiguration = environment?.hosts[0]
		if (environment === undefined || hostConfiguration === undefined) throw new Error("no environment")
		const wanted = packagesFor({ environment, hostConfiguration })
		// Those of the share and of certificates, which this environment doesn't ask for.
		const all = [...wanted.filter((name) => name !== "tailscale"), "nfs-common", "certbot"]
		await shell("apt-get update")
		const apt = ["apt-get", "--yes", "--no-install-recommends", "install", ...all]
		await server.run(apt, { environment: { DEBIAN_FRONTEND: "noninteractive" }, timeoutMs: 120_000 })
		expect(await shell("jq --version; htpasswd -nbB a b | cut -c1-3; certbot --version")).toMatch(
			/^jq-1\.6\na:\$\s+certbot 2\./,
		)
	})

	test("gets Tailscale from a repository as the vendor's, with its key checked", async () => {
		await shell(`install -d /etc/apt/keyrings
curl -fsS -o /etc/apt/keyrings/tailscale.gpg ${servers.apt.tailscale}/debian/bookworm.noarmor.gpg
echo '${servers.apt.keySha256}  /etc/apt/keyrings/tailscale.gpg' | sha256sum --check --quiet
echo 'deb [signed-by=/etc/apt/keyrings/tailscale.gpg] ${servers.apt.tailscale}/debian bookworm main' >/etc/apt/sources.list.d/tailscale.list
apt-get update && apt-get --yes install tailscale`)
		expect(await shell("dpkg-query --show tailscale")).toBe("tailscale\t0.0.0+stand-in\n")
		expect(await shell("systemctl is-active tailscaled; systemctl is-enabled tailscaled")).toBe(
			"active\nenabled\n",
		)
		expect(await shell("tailscale --version")).toMatch(/stand-in/)
		await shell("gpgconf --version >/dev/null 2>&1 || true; : >/etc/apt/keyrings/tailscale.gpg")
		const unsigned = await server.run(["apt-get", "update"], any)
		expect(unsigned.stderr + unsigned.stdout).toMatch(/not signed|NO_PUBKEY/)
	})

	test("loads base images, builds on them, and its containers find each other", async () => {
		await servers.loadBaseImages(server)
		const images = await shell("docker images --format '{{.Repository}}:{{.Tag}}'")
		for (const name of Object.values(baseImages)) expect(images).toContain(name)
		await shell(`mkdir -p /root/site && cd /root/site
echo from a container >index.html
printf 'FROM ${baseImages.python}\\nCOPY index.html /srv/\\nRUN test -s /srv/index.html\\nWORKDIR /srv\\nCMD ["python3", "-m", "http.server", "8000"]\\n' >Dockerfile
cat >compose.yaml <<'END'
services:
  site:
    build: .
    init: true
    restart: unless-stopped
    mem_limit: 200m
    ports: ["8000:8000"]
    healthcheck: { test: curl -fsS http://127.0.0.1:8000/, interval: 30s, start_period: 20s, start_interval: 200ms }
  visitor:
    image: ${baseImages.node}
    init: true
    restart: unless-stopped
    depends_on: { site: { condition: service_healthy } }
    command: sh -c "curl -fsS http://site:8000/ && sleep infinity"
    volumes: [kept:/kept]
volumes: { kept: {} }
END
docker compose up --build --detach --wait`)
		const logs = () => shell("docker logs site-visitor-1")
		await poll(async () => (await logs()) === "from a container\n", {
			what: "the visitor's word",
			deadlineMs: 10_000,
		})
		expect(
			await shell(
				"cat /sys/fs/cgroup/memory/docker/*/memory.limit_in_bytes /sys/fs/cgroup/docker/*/memory.max 2>/dev/null || true",
			),
		).toContain(`${200 * 2 ** 20}\n`)
	})

	test("shows a published port to its neighbours", async () => {
		const answer = await run("curl", ["-fsS", "--max-time", "5", `http://${server.address}:8000/`])
		expect(answer.stdout).toBe("from a container\n")
	})

	test("mounts the share and its disk itself", async () => {
		await writeFile(join(directory, "share/from-outside"), "outside\n")
		await shell(`mkfs.ext4 -q ${scratchDevice}
mkdir -p /mnt/sfs /mnt/scratch
printf '${scratchDevice} /mnt/scratch ext4 defaults,nofail 0 2\\n${outsideShare} /mnt/sfs none bind,nofail,_netdev 0 0\\n' >>/etc/fstab
systemctl daemon-reload
mount /mnt/sfs && mount /mnt/scratch
echo kept >/mnt/scratch/kept`)
		expect(await shell("cat /mnt/sfs/from-outside; findmnt -no SOURCE,FSTYPE /mnt/scratch")).toBe(
			`outside\n${scratchDevice} ext4\n`,
		)
	})

	test("comes back from a reboot with its mounts, its containers and its images", async () => {
		await shell(`docker run --detach --name once --init ${baseImages.redis} sleep infinity`)
		await server.reboot()
		await Promise.all([server.waitForSsh(), waitForDocker(server)])
		await shell("systemctl is-system-running --wait || true")
		// There is no NFS in this kernel, and nfs-common misses it.
		expect(
			await shell("systemctl --failed --no-legend --plain | grep -v ^run-rpc_pipefs.mount || true"),
		).toBe("")
		expect(await shell("cat /mnt/sfs/from-outside /mnt/scratch/kept")).toBe("outside\nkept\n")
		await poll(
			async () =>
				(await server.run(["curl", "-fsS", "--max-time", "2", "http://127.0.0.1:8000/"], any)).stdout ===
				"from a container\n",
			{ what: "the published port after the reboot", deadlineMs: 20_000 },
		)
		// The visitor is started again until the site is there.
		await poll(
			async () =>
				(await shell("docker ps --all --format '{{.Names}} {{.State}}' | sort")) ===
				"once exited\nsite-site-1 running\nsite-visitor-1 running\n",
			{ what: "the containers after the reboot", deadlineMs: 60_000 },
		)
		expect((await shell("docker images --quiet")).trim().split("\n").length).toBeGreaterThan(3)
	})

	test("two have an engine and a disk each", async () => {
		await using second = await servers.freshServer("app-2", { scratchBytes: 64 * 2 ** 20 })
		expect((await second.run(["docker", "ps", "--all", "--quiet"])).stdout).toBe("")
		expect((await second.run(["blockdev", "--getsize64", scratchDevice])).stdout).toBe(`${64 * 2 ** 20}\n`)
	})

	test("is cleared away with its disk and its containers when its test was killed", async () => {
		const script = fileURLToPath(new URL("../support/abandon-fresh-server.ts", import.meta.url))
		const killed = await run(process.execPath, [script], { ...any, timeoutMs: 120_000 })
		expect(killed.stderr).toBe("")
		const { address, disks } = JSON.parse(killed.stdout) as { address: string; disks: string }
		const number = address.split(".")[2]
		expect(disks).toContain(`/worlds/${number}/`)
		const traces = async () => ({
			groups: (await run("find", ["/sys/fs/cgroup", "-name", `cfy${number}i*`])).stdout,
			disks: (await run("losetup", ["--list"])).stdout.includes(`/worlds/${number}/`),
			directory: (await readdir(join(cacheDirectory(), "worlds"))).includes(`${number}`),
			processes: (await run("pgrep", ["--full", `cfy${number}i`], any)).stdout,
		})
		const nothing = { groups: "", disks: false, directory: false, processes: "" }
		await sweepLeftovers()
		expect(await traces()).toEqual(nothing)
	})
})
