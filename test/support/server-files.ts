// A server's files as a workshop's server has them, and a machine fresh from the provider: as directories. The demo
// and the tests use the same.
import { execFileSync } from "node:child_process"
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import { dirname, join } from "node:path"
import { installStandIns } from "./stand-ins.ts"

function git(directory: string, ...args: string[]): string {
	return execFileSync("git", ["-C", directory, ...args], {
		encoding: "utf8",
		stdio: ["ignore", "pipe", "pipe"],
	})
}

/** A bare repository with one commit, and the working tree it came from beside it. */
export function makeRemote(remote: string): void {
	const work = `${remote}.work`
	execFileSync("git", ["init", "--quiet", "--initial-branch=main", work])
	for (const [key, value] of [
		["user.name", "A Developer"],
		["user.email", "developer@example.test"],
	] as const)
		git(work, "config", key, value)
	writeFileSync(join(work, "docker-compose.yml"), "services: {}\n")
	writeFileSync(join(work, ".gitignore"), ".env\ndata/\n")
	git(work, "add", "-A")
	git(work, "commit", "--quiet", "-m", "The first")
	execFileSync("git", ["clone", "--quiet", "--bare", work, remote])
	git(work, "remote", "add", "origin", remote)
}

/** Adds a commit to the remote and returns its id. */
export function pushCommit(remote: string, text: string): string {
	const work = `${remote}.work`
	writeFileSync(join(work, "notes.txt"), text)
	git(work, "add", "-A")
	git(work, "commit", "--quiet", "-m", text)
	git(work, "push", "--quiet", "origin", "main")
	return git(work, "rev-parse", "HEAD").trim()
}

function makeHostKey(server: string, type: string): void {
	const key = join(server, `etc/ssh/ssh_host_${type}_key`)
	mkdirSync(dirname(key), { recursive: true })
	// A short one where the length can be chosen: every sandbox makes some, and nobody breaks into a directory.
	const length = type === "rsa" ? ["-b", "1024"] : []
	execFileSync("ssh-keygen", ["-q", "-t", type, ...length, "-N", "", "-C", "root@app-1", "-f", key])
}

/** Runs one of the stand-in programs of a server that is a directory, and gives what it printed. */
export function inServer(server: string, program: string, ...args: string[]): string {
	return execFileSync(join(server, "usr/local/bin", program), args, {
		encoding: "utf8",
		env: { ...process.env, COMFYUME_ROOT: server },
	})
}

export const tailscaleAddressOf = (server: string) => inServer(server, "tailscale", "ip", "-4").trim()

function place(server: string, path: string, content: string | Buffer, mode = 0o644): void {
	const file = join(server, path)
	mkdirSync(dirname(file), { recursive: true })
	writeFileSync(file, content)
	chmodSync(file, mode)
}

/** Fills a directory with what a running server holds. Its Tailscale stand-in is up, as `tailscaleAddressOf` says. */
export async function fillServer(server: string, remote: string): Promise<string> {
	await installStandIns(server)
	inServer(server, "systemctl", "start", "tailscaled")
	inServer(server, "tailscale", "up", "--ssh=false")
	for (const type of ["ed25519", "rsa"]) makeHostKey(server, type)
	place(server, "etc/ssh/sshd_config", "Port 22\n")
	place(server, "etc/ufw/ufw.conf", "ENABLED=yes\nLOGLEVEL=low\n")
	place(
		server,
		"etc/ufw/user.rules",
		`*filter\n${"-A ufw-user-input -p tcp --dport 443 -j ACCEPT\n".repeat(5)}COMMIT\n`,
		0o640,
	)
	place(server, "etc/default/ufw", "IPV6=yes\n")
	place(server, "etc/fail2ban/fail2ban.conf", `[Definition]\n${"loglevel = INFO\n".repeat(20)}`)
	place(server, "etc/fail2ban/jail.local", "[sshd]\nenabled = true\nmaxretry = 3\n")
	const home = join(server, "home/dev")
	mkdirSync(home, { recursive: true })
	for (const name of ["project", "scripts"])
		execFileSync("git", ["clone", "--quiet", remote, join(home, name)])
	place(
		server,
		"home/dev/project/.env",
		"DOMAIN=workshop.example.test\nREDIS_PASSWORD=made-up-value\n",
		0o600,
	)
	place(server, "home/dev/.zshrc", "export EDITOR=vi\n".repeat(10))
	place(server, "home/dev/notes with spaces.txt", "an operator's notes\n")
	place(server, "home/dev/.cache/big", "never backed up")
	symlinkSync("notes with spaces.txt", join(home, "link"))
	return server
}

/** A machine as the provider hands it over: with host keys of its own, and nothing of ours. */
export async function freshServer(server: string): Promise<string> {
	await installStandIns(server)
	// One of a kind that the old server had, and one of a kind that it didn't.
	for (const type of ["ed25519", "ecdsa"]) makeHostKey(server, type)
	place(server, "etc/ssh/sshd_config", "Port 22\n")
	place(server, "etc/fail2ban/jail.d/defaults.conf", "from the package\n")
	mkdirSync(join(server, "root"), { recursive: true })
	return server
}
