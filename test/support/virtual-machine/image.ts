// The disk that every virtual machine begins with: the instances' base with Debian's own kernel installed in it, because
// the outer machine's kernel has no NFS.
import { createHash } from "node:crypto"
import { cp, mkdir, readdir, rename, rm, writeFile } from "node:fs/promises"
import { basename, join } from "node:path"
import { ensureDebianPackages } from "../debian-packages.ts"
import { cacheDirectory, ensureBase, isDirectory } from "../instance/base.ts"
import { run } from "../run.ts"

const packages = ["linux-image-cloud-amd64", "initramfs-tools", "udev", "kmod", "nfs-common", "e2fsprogs"]

const files: Readonly<Record<string, string>> = {
	// Only what these machines' disk and network need: an emulated processor unpacks it at every boot.
	"etc/initramfs-tools/conf.d/comfyume-test": "MODULES=list\nCOMPRESS=lz4\nFSTYPE=ext4\n",
	"etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\nvirtio_net\n",
	"etc/fstab": "/dev/vda / ext4 defaults 0 1\n",
	// Else the first boot builds caches of libraries, users and messages.
	"etc/.updated": "",
	"var/.updated": "",
}

// Raised when something below changes that isn't part of the hash by itself.
const recipe = { version: 3, packages, files, sizeBytes: 3 * 2 ** 30 }

export type VirtualMachineImage = { disk: string; kernel: string; initialRamDisk: string }

/** Gives the image, and builds it when it isn't there yet (a minute, Debian's mirror). */
export async function ensureImage(): Promise<VirtualMachineImage> {
	const base = await ensureBase()
	const digest = createHash("sha256").update(JSON.stringify({ ...recipe, base: basename(base) }))
	const directory = join(cacheDirectory(), `virtual-machine-${digest.digest("hex").slice(0, 12)}`)
	if (!(await isDirectory(directory))) await build(directory, base)
	return {
		disk: join(directory, "disk"),
		kernel: join(directory, "vmlinuz"),
		initialRamDisk: join(directory, "initrd.img"),
	}
}

async function build(directory: string, base: string): Promise<void> {
	const debian = await ensureDebianPackages(packages)
	const partial = `${directory}.${process.pid}.partial`
	const root = join(partial, "root")
	try {
		await mkdir(partial, { recursive: true })
		await run("cp", ["--archive", base, root])
		await cp(debian, join(root, "packages"), { recursive: true })
		await writeFile(join(root, "etc/apt/sources.list"), "deb [trusted=yes] file:/packages ./\n")
		await mkdir(join(root, "etc/initramfs-tools/conf.d"), { recursive: true })
		for (const [path, content] of Object.entries(files)) await writeFile(join(root, path), content)
		const script = `set -e
mount -t proc proc "$1/proc"
mount -t sysfs -o ro sysfs "$1/sys"
mount --bind /dev "$1/dev"
shift
export DEBIAN_FRONTEND=noninteractive
chroot "$ROOT" apt-get update
chroot "$ROOT" apt-get --yes --no-install-recommends -o Dpkg::Options::=--force-confold -o Dpkg::Options::=--force-unsafe-io install "$@"
chroot "$ROOT" systemctl enable systemd-networkd
chroot "$ROOT" systemctl disable fail2ban ufw cron
chroot "$ROOT" systemctl mask serial-getty@ttyS0 systemd-logind systemd-binfmt \\
	modprobe@configfs modprobe@dm_mod modprobe@drm modprobe@fuse modprobe@loop
touch "$ROOT/etc/.updated" "$ROOT/var/.updated"
`
		// In a mount namespace of its own: killed halfway, nothing stays mounted.
		await run("unshare", ["--mount", "sh", "-c", script, "sh", root, ...packages], {
			timeoutMs: 600_000,
			environment: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin", ROOT: root },
		})
		await rm(join(root, "packages"), { recursive: true })
		for (const name of await readdir(join(root, "boot"))) {
			const [kind] = name.split("-")
			if (kind === "vmlinuz") await rename(join(root, "boot", name), join(partial, "vmlinuz"))
			if (kind === "initrd.img") await rename(join(root, "boot", name), join(partial, "initrd.img"))
		}
		const disk = join(partial, "disk")
		await run("truncate", [`--size=${recipe.sizeBytes}`, disk])
		await run("mke2fs", ["-q", "-t", "ext4", "-d", root, disk], { timeoutMs: 300_000 })
		await rm(root, { recursive: true })
		await rename(partial, directory)
	} catch (error) {
		// Another process may have been faster; its image is as good as ours.
		if (!(await isDirectory(directory))) throw error
	} finally {
		await rm(partial, { recursive: true, force: true })
	}
}
