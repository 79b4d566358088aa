// The whole server: from a fresh machine to verified in one command, without a backup and with one; after a reboot; and
// each line of the checklist turned by hand.
import { readFileSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { afterAll, beforeAll, describe, expect, test } from "vitest"
import { waitForDocker } from "../support/fresh-server.ts"
import type { Instance } from "../support/instance/instance.ts"
import { describeWith } from "../support/parts.ts"
import { authKey, openWholeServers, type Said, saidBy, type WholeServers } from "../support/whole-server.ts"
import { type Identity, inventoryOf } from "../support/workshop.ts"

const users = ["user001", "user002", "user003"]
/** All containers that users and services have: Redis, queue manager, auth gate, admin, nginx. */
const untilHealthy = `for _ in $(seq 600); do [ $(docker ps --filter health=healthy --quiet | wc -l) -ge ${users.length + 5} ] && break; sleep 0.2; done`

describeWith("docker", "the whole server", () => {
	let servers: WholeServers
	let first: Instance
	let second: Instance
	let identity: Identity
	let lost: string

	beforeAll(async () => {
		servers = await openWholeServers({ users: users.length })
	})
	afterAll(() => servers?.[Symbol.asyncDispose]())

	const shell = async (server: Instance, script: string) =>
		(await server.run(["sh", "-c", script], { allowedExitCodes: "any" })).stdout
	/** What a restore would leave behind, but for comfyume itself, which a dry run puts there to look with. */
	const traces = (server: Instance) =>
		shell(
			server,
			"dpkg --list | md5sum; ls -lA /etc /etc/ssh /root /root/.ssh /home /mnt /usr/local/bin; cat /etc/fstab; docker ps --all --quiet; blkid /dev/vdb; findmnt --raw --noheadings | wc -l",
		)
	const of = (said: Said, outcome: string) =>
		Object.entries(said.outcomes).flatMap(([step, ended]) => (ended === outcome ? [step] : []))

	test("a dry run on a fresh machine says what would be done, and does nothing", async () => {
		first = await servers.freshServer("first", { images: true })
		servers.pointAt(first)
		const fingerprint = await servers.workshop.consoleFingerprint(first)
		const before = await traces(first)
		const words = ["--host-fingerprint", fingerprint, "--format-scratch", servers.scratchDevice]
		const planned = await servers.comfyume("restore", ...words, "--first", "--dry-run")
		expect(planned.exitCode, planned.all).toBe(0)
		for (const step of [
			"packages",
			"share",
			"scratch",
			"tailscale-is-up",
			"project",
			"program",
			"timer-backup",
		])
			expect(planned.outcomes[step], step).toBe("planned")
		expect(of(planned, "applied")).toEqual([])
		expect(await traces(first)).toBe(before)
	})

	test("a first deployment, of which there is no backup, is made by one command, and verified", async () => {
		const fingerprint = await servers.workshop.consoleFingerprint(first)
		const words = ["--host-fingerprint", fingerprint, "--format-scratch", servers.scratchDevice]
		const ran = await servers.comfyume("restore", ...words, "--first")
		expect(ran.exitCode, ran.all).toBe(0)
		expect(ran.notes.join("\n")).toMatch(/no backup notes a commit of project: it gets the tip of main/)
		expect(ran.because["verify/users"]).toBe("3 users and admin get in, each into the own page alone")
		expect(ran.because["verify/share"]).toMatch(/stand-in/)
		expect(await shell(first, "docker ps --format '{{.Names}}' | wc -l")).toBe("8\n")
		// The key by which it joined the tailnet is nowhere on it.
		expect(await shell(first, `grep -rlF ${authKey} /etc /opt /var/log /var/lib/comfyume /root /run`)).toBe(
			"",
		)
	})

	test("it is backed up as its timer would, and lost", async () => {
		identity = await servers.identityOf(first)
		servers.pointAt(first, identity)
		// Its address belongs to its configuration from now on, as the first run has said.
		const known = await servers.comfyume("restore", "--only", "machine")
		expect(known.exitCode, known.all).toBe(0)
		await shell(first, "echo 'a film' >/etc/comfyume/stack/user_data/user002/film.txt")
		expect(known.outcomes["configuration"]).toBe("applied")
		const backup = await first.run(["/usr/local/bin/comfyume", "backup", "--quiet"], {
			allowedExitCodes: "any",
			timeoutMs: 500_000,
		})
		expect(backup.exitCode, backup.stdout + backup.stderr).toBe(0)
		lost = inventoryOf(first)
		await first.destroy()
	})

	test("one command brings all of it back on a fresh machine, and verified", async () => {
		second = await servers.freshServer("second")
		servers.pointAt(second, identity)
		const fingerprint = await servers.workshop.consoleFingerprint(second)
		const words = [
			...["restore", "--identity-is-free", "--host-fingerprint", fingerprint],
			...["--format-scratch", servers.scratchDevice],
		]
		const before = await traces(second)
		const planned = await servers.comfyume(...words, "--dry-run")
		expect(planned.exitCode, planned.all).toBe(0)
		expect(planned.outcomes).toMatchObject({
			"tailscale-identity": "planned",
			stack: "planned",
			home: "planned",
		})
		expect(await traces(second)).toBe(before)
		const ran = await servers.comfyume(...words)
		expect(ran.exitCode, ran.all).toBe(0)
		expect(of(ran, "failed")).toEqual([])
		expect(inventoryOf(second)).toBe(lost)
		expect(await shell(second, "cat /etc/comfyume/stack/user_data/user002/film.txt")).toBe("a film\n")
		const verified = await servers.comfyume("verify")
		expect(verified.exitCode, verified.all).toBe(0)
		expect((await servers.identityOf(second)).tailscaleAddress).toBe(identity.tailscaleAddress)
	})

	test("a second restore changes nothing", async () => {
		const again = await servers.comfyume("restore")
		expect(again.exitCode, again.all).toBe(0)
		expect(of(again, "applied")).toEqual([])
	})

	test("it outlives a reboot", async () => {
		await second.reboot()
		// Not by asking sshd again and again: the firewall counts that.
		await waitForDocker(second)
		await shell(second, "for _ in $(seq 600); do systemctl is-active --quiet ssh && break; sleep 0.2; done")
		// The containers come by themselves; they are given the time that their health checks take.
		await shell(second, untilHealthy)
		const verified = await servers.comfyume("verify")
		expect(verified.exitCode, verified.all).toBe(0)
		// They were started when the mounts had been tried, and not before.
		const units = (await shell(second, "systemctl show --property=After docker")).trim().split(/[= ]/)
		expect(units).toEqual(expect.arrayContaining(["mnt-sfs.mount", "mnt-scratch.mount"]))
	})

	test("nothing is started while the share is not mounted", async () => {
		await shell(second, "docker stop comfy-user002; umount -l /mnt/sfs")
		const start = async () => {
			const ran = await second.run(["/usr/local/bin/comfyume", "start", "--json"], {
				allowedExitCodes: "any",
			})
			return saidBy(ran)
		}
		const refused = await start()
		await shell(second, "mount /mnt/sfs")
		expect(refused.exitCode).toBe(4)
		expect(refused.because["mounts"]).toBe("the share is not mounted at /mnt/sfs")
		expect(refused.outcomes["user002"]).toBe("blocked")
		const started = await start()
		expect(started.exitCode, started.all).toBe(0)
		expect(of(started, "applied")).toEqual(["user002"])
	})

	describe("each line of the checklist, broken by hand", () => {
		const stack = "/etc/comfyume/stack"
		const keep = (path: string, breaking: string) => `cp -a ${path} /root/kept && ${breaking}`
		const back = (path: string) => `rm -rf ${path} && mv /root/kept ${path}`
		const reload = "docker exec comfy-nginx nginx -s reload"
		// What follows of itself waits, and says so.
		const cases: readonly [
			name: string,
			line: string,
			breaking: string,
			mending: string,
			/** What fails by the same deed: what runs was started from other files. */
			also?: readonly string[],
		][] = [
			["the firewall off", "firewall", "ufw disable", "ufw --force enable"],
			["a rule too many", "firewall", "ufw allow 6379/tcp", "ufw --force delete allow 6379/tcp"],
			[
				"a jail stopped",
				"fail2ban-jail",
				"fail2ban-client stop sshd",
				"systemctl restart fail2ban && sleep 2",
			],
			["another host key", "ssh-on-the-wire", keep("/etc/ssh/ssh_host_ed25519_key", keep2()), back2()],
			["the share unmounted", "share", "umount -l /mnt/sfs", "mount /mnt/sfs"],
			[
				"another environment's share",
				"share-sentinel",
				keep("/mnt/sfs/ENVIRONMENT", "echo production >/mnt/sfs/ENVIRONMENT"),
				back("/mnt/sfs/ENVIRONMENT"),
			],
			[
				"outputs that ComfyUI can't write to",
				"share-directories",
				"chmod 755 /mnt/sfs/outputs",
				"chmod 1777 /mnt/sfs/outputs",
			],
			[
				"an nginx of the machine's own that would take the ports at the next boot",
				"host-nginx",
				`mkdir -p /etc/nginx/conf.d; ln -s ${stack}/nginx/host.conf /etc/nginx/conf.d/comfyume.conf; printf '[Service]\\nExecStart=/bin/true\\n[Install]\\nWantedBy=multi-user.target\\n' >/etc/systemd/system/nginx.service; systemctl daemon-reload; systemctl enable nginx`,
				"systemctl disable nginx; rm /etc/nginx/conf.d/comfyume.conf /etc/systemd/system/nginx.service; systemctl daemon-reload",
			],
			[
				"Docker that waits for no mount",
				"docker",
				keep(
					"/etc/systemd/system/docker.service.d/comfyume.conf",
					"rm /etc/systemd/system/docker.service.d/comfyume.conf",
				),
				back("/etc/systemd/system/docker.service.d/comfyume.conf"),
			],
			["scratch unmounted", "scratch", "umount -l /mnt/scratch", "mount /mnt/scratch"],
			[
				"outputs on scratch shut",
				"scratch-directories",
				"chmod 755 /mnt/scratch/outputs",
				"chmod 1777 /mnt/scratch/outputs",
			],
			["Tailscale down", "tailscale-is-up", "tailscale down", "tailscale up --ssh=false"],
			["the user's shell", "user-complete", "usermod --shell /bin/sh dev", "usermod --shell /bin/zsh dev"],
			["a package removed", "packages", "dpkg --remove jq", "apt-get install --yes jq"],
			[
				"an operator's key gone",
				"access",
				keep(
					"/root/.ssh/authorized_keys",
					"sed -i 's/ssh-ed25519 .*/&x/' /root/.ssh/authorized_keys; ssh-keygen -q -t ed25519 -N '' -f /root/other; cat /root/other.pub >/root/.ssh/authorized_keys; rm /root/other*",
				),
				back("/root/.ssh/authorized_keys"),
			],
			[
				"the configuration changed",
				"configuration",
				"echo '# changed' >>/etc/comfyume/comfyume.yaml",
				"sed -i '$d' /etc/comfyume/comfyume.yaml",
			],
			[
				"secrets open to others",
				"secrets",
				"chmod 644 /etc/comfyume/secrets.env",
				"chmod 600 /etc/comfyume/secrets.env",
			],
			["an env file open to others", "env-files", `chmod 644 ${stack}/.env`, `chmod 600 ${stack}/.env`],
			[
				"links of the older way elsewhere",
				"storage-paths",
				"mkdir -p /home/dev/project/data; ln -s /mnt/elsewhere /home/dev/project/data/models",
				"rm -r /home/dev/project/data",
			],
			[
				"a file changed in the checkout",
				"project",
				"echo x >>/home/dev/project/docker-compose.yml",
				"runuser -u dev -- git -C /home/dev/project checkout -- .",
			],
			[
				"htpasswd emptied",
				"files",
				keep(`${stack}/auth/htpasswd`, `: >${stack}/auth/htpasswd`),
				`cat /root/kept >${stack}/auth/htpasswd; rm /root/kept`,
				["queue", "users"],
			],
			[
				"a directory instead of a file",
				"files",
				keep(`${stack}/redis/redis.conf`, `rm ${stack}/redis/redis.conf; mkdir ${stack}/redis/redis.conf`),
				back(`${stack}/redis/redis.conf`),
				["containers"],
			],
			[
				"an image gone",
				"images",
				"docker tag nginx:1.28-alpine kept:1 && docker rmi --force nginx:1.28-alpine",
				"docker tag kept:1 nginx:1.28-alpine && docker rmi kept:1",
			],
			[
				"a container stopped",
				"containers",
				"docker stop comfy-user002",
				`docker start comfy-user002; ${untilHealthy}`,
			],
			[
				"Redis with another password",
				"redis",
				"docker exec comfy-redis redis-cli config set requirepass another",
				`docker restart comfy-redis comfy-queue-manager; ${untilHealthy}`,
			],
			[
				"a user's password another",
				"users",
				keep(
					`${stack}/credentials.env`,
					`sed -i 's/USER_CREDENTIALS_USER002=.*/USER_CREDENTIALS_USER002=user002:made-up-and-wrong-1/' ${stack}/credentials.env`,
				),
				back(`${stack}/credentials.env`),
			],
			[
				"the certificate swapped",
				"served",
				keep(
					"/etc/comfyume/certificates",
					"openssl req -x509 -newkey rsa:2048 -nodes -days 60 -subj /CN=rehearsal.example.test -addext subjectAltName=DNS:rehearsal.example.test -keyout /etc/comfyume/certificates/key.pem -out /etc/comfyume/certificates/cert.pem 2>/dev/null",
				),
				back("/etc/comfyume/certificates"),
			],
			[
				"an extension's file changed",
				"extensions",
				`echo x >>${stack}/user_data/user002/comfyui/custom_nodes/comfyume_stand_in/__init__.py`,
				`sed -i '$d' ${stack}/user_data/user002/comfyui/custom_nodes/comfyume_stand_in/__init__.py`,
			],
			[
				"a model cut short",
				"models-share",
				keep(
					"/mnt/sfs/models/shared/loras/one.safetensors",
					"truncate -s 1000 /mnt/sfs/models/shared/loras/one.safetensors",
				),
				"cat /root/kept >/mnt/sfs/models/shared/loras/one.safetensors; rm /root/kept",
			],
			[
				"a timer removed",
				"timer-backup",
				keep(
					"/etc/systemd/system/comfyume-backup.timer",
					"systemctl disable --now comfyume-backup.timer; rm /etc/systemd/system/comfyume-backup.timer",
				),
				"mv /root/kept /etc/systemd/system/comfyume-backup.timer; systemctl daemon-reload; systemctl enable --now comfyume-backup.timer",
			],
		]
		// Two files of one key, and sshd's own memory of them.
		function keep2() {
			return "cp -a /etc/ssh/ssh_host_ed25519_key.pub /root/kept.pub; rm /etc/ssh/ssh_host_ed25519_key*; ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key; systemctl restart ssh"
		}
		function back2() {
			return "mv -f /root/kept /etc/ssh/ssh_host_ed25519_key; mv -f /root/kept.pub /etc/ssh/ssh_host_ed25519_key.pub; systemctl restart ssh"
		}

		test.each(cases)("%s: %s", async (_, line, breaking, mending, also = []) => {
			await shell(second, breaking)
			try {
				// On the machine itself: its firewall slows down who logs in as often as this. But its own configuration and
				// secrets are what a run there goes by, and only the laptop's can differ from them.
				const fromLaptop = line === "configuration" || line === "secrets"
				const verified = fromLaptop ? await servers.comfyume("verify", ...quick) : await onTheMachine()
				expect(of(verified, "failed").sort(), verified.all).toEqual([line, ...also].sort())
				expect(verified.exitCode).toBe(line === "share-sentinel" ? 8 : 3)
			} finally {
				await shell(second, mending)
			}
		})

		// It is a run of its own, and the last test has it.
		const quick = ["--skip", "backup-dry-run"]
		const onTheMachine = async () => {
			writeFileSync(join(second.root, "root/models.yaml"), readFileSync(servers.manifest))
			const words = ["verify", "--json", "--manifest", "/root/models.yaml", ...quick]
			return saidBy(
				await second.run(["/usr/local/bin/comfyume", ...words], {
					allowedExitCodes: "any",
					timeoutMs: 120_000,
				}),
			)
		}

		test("and put right, all of it is right again", async () => {
			await shell(second, `${reload}; ${untilHealthy}`)
			const verified = await servers.comfyume("verify")
			expect(verified.exitCode, verified.all).toBe(0)
		})
	})
})
