// Docker in an instance, as a rented machine has it when it is handed over: what is laid over the base for it, and what
// the instance must be allowed beyond an ordinary one's rights.
import { createHash } from "node:crypto"
import { chmod, copyFile, mkdir, rename, rm, symlink, writeFile } from "node:fs/promises"
import { dirname, join } from "node:path"
import { composeProgram, dockerPrograms } from "../parts.ts"
import { cacheDirectory, isDirectory } from "./base.ts"

// The names under which the distribution's packages have them.
const programs = (): Readonly<Record<string, string>> => ({
	"usr/bin/docker": join(dockerPrograms(), "docker"),
	"usr/bin/dockerd": join(dockerPrograms(), "dockerd"),
	"usr/bin/docker-proxy": join(dockerPrograms(), "docker-proxy"),
	"usr/bin/docker-init": join(dockerPrograms(), "tini-static"),
	"usr/bin/containerd": join(dockerPrograms(), "containerd"),
	"usr/bin/containerd-shim-runc-v2": join(dockerPrograms(), "containerd-shim-runc-v2"),
	"usr/bin/runc": join(dockerPrograms(), "runc"),
	"usr/libexec/docker/cli-plugins/docker-buildx": join(dockerPrograms(), "docker-buildx"),
	"usr/libexec/docker/cli-plugins/docker-compose": composeProgram(),
})

// fstab's disks are passed over by systemd's generator in a container: there is no udev to say that one is there. A
// machine has its disks at once, and so has an instance.
const disksGenerator = `#!/bin/sh
# The disks in /etc/fstab become mount units, as on a machine with udev.
while read -r source target type options _; do
	case $source in /dev/*) ;; *) continue ;; esac
	[ -b "$source" ] || continue
	unit=$(systemd-escape --path --suffix=mount "$target")
	printf '[Unit]\\nSourcePath=/etc/fstab\\nBefore=local-fs.target\\n\\n[Mount]\\nWhat=%s\\nWhere=%s\\nType=%s\\nOptions=%s\\n' \\
		"$source" "$target" "$type" "$options" >"$1/$unit"
	mkdir -p "$1/local-fs.target.wants"
	ln -sf "../$unit" "$1/local-fs.target.wants/$unit"
done </etc/fstab
`

const files: Readonly<Record<string, string>> = {
	// nspawn makes them read-only, and Docker makes control groups and lets packets through.
	"usr/lib/systemd/system/outside-writable.service": `[Unit]
Description=Control groups and kernel settings that can be written
DefaultDependencies=no
Before=sysinit.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'mount -o remount,bind,rw /proc/sys; mount -o remount,bind,rw /sys/fs/cgroup; for at in /sys/fs/cgroup/*/; do if mountpoint -q "$$at"; then mount -o remount,bind,rw "$$at"; fi; done'
`,
	"usr/lib/systemd/system/containerd.service": `[Unit]
Description=containerd container runtime
After=network.target

[Service]
ExecStart=/usr/bin/containerd
Type=notify
Delegate=yes
KillMode=process
Restart=always
LimitNOFILE=infinity
TasksMax=infinity

[Install]
WantedBy=multi-user.target
`,
	"usr/lib/systemd/system/docker.socket": `[Unit]
Description=Docker Socket for the API

[Socket]
ListenStream=/run/docker.sock
SocketMode=0660
SocketUser=root
SocketGroup=docker

[Install]
WantedBy=sockets.target
`,
	"usr/lib/systemd/system/docker.service": `[Unit]
Description=Docker Application Container Engine
After=network-online.target docker.socket containerd.service
Wants=network-online.target containerd.service
Requires=docker.socket

[Service]
Type=notify
ExecStart=/usr/bin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock
ExecReload=/bin/kill -s HUP $MAINPID
TimeoutSec=0
Restart=always
LimitNOFILE=infinity
TasksMax=infinity
Delegate=yes
KillMode=process

[Install]
WantedBy=multi-user.target
`,
	"usr/lib/systemd/system-generators/outside-disks": disksGenerator,
}

const enabled = {
	"sysinit.target.wants": ["outside-writable.service"],
	"sockets.target.wants": ["docker.socket"],
	"multi-user.target.wants": ["containerd.service", "docker.service"],
}

/** Directories that Docker can't have on an overlay. */
export const containerDirectories = ["docker", "containerd"]

/** What nspawn is told for an instance with containers in it. */
export const containerArguments = (directory: string): string[] => [
	"--capability=all",
	"--system-call-filter=add_key keyctl bpf @keyring @mount",
	...containerDirectories.map((name) => `--bind=${join(directory, name)}:/var/lib/${name}`),
]

/** Gives the directory that is laid over the base, and makes it when it isn't there yet: 340 MB, a second. */
export async function ensureDockerLayer(): Promise<string> {
	const recipe = JSON.stringify({ version: 2, programs: programs(), files, enabled })
	const layer = join(
		cacheDirectory(),
		`docker-layer-${createHash("sha256").update(recipe).digest("hex").slice(0, 12)}`,
	)
	if (await isDirectory(layer)) return layer
	const partial = `${layer}.${process.pid}.partial`
	try {
		const make = async (path: string, fill: (place: string) => Promise<void>) => {
			const place = join(partial, path)
			await mkdir(dirname(place), { recursive: true })
			await fill(place)
		}
		for (const [path, from] of Object.entries(programs())) {
			await make(path, (place) => copyFile(from, place))
			await chmod(join(partial, path), 0o755)
		}
		for (const [path, content] of Object.entries(files))
			await make(path, (place) => writeFile(place, content))
		await chmod(join(partial, "usr/lib/systemd/system-generators/outside-disks"), 0o755)
		for (const [target, units] of Object.entries(enabled))
			for (const unit of units)
				await make(join("etc/systemd/system", target, unit), (place) =>
					symlink(`/usr/lib/systemd/system/${unit}`, place),
				)
		await rename(partial, layer)
	} catch (error) {
		// Another process may have been faster; its layer is as good as ours.
		if (!(await isDirectory(layer))) throw error
	} finally {
		await rm(partial, { recursive: true, force: true })
	}
	return layer
}
