// Incident 24: backup and restore had lists of their own, with other names. Here is one of everything in the catalogue.
import { chmodSync, mkdirSync, symlinkSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { expect, test } from "vitest"
import { readCatalogue } from "../../../src/lib/artifacts/catalogue.ts"
import { createSandbox } from "../../support/sandbox.ts"

/** Besides what `fillServer` has: something of each of the others, below the artifact's own paths. */
const more: Readonly<Record<string, readonly string[]>> = {
	"ubuntu-pro": ["var/lib/ubuntu-advantage/private/machine-token.json", "etc/ubuntu-advantage/uaclient.conf"],
	nginx: ["etc/nginx/nginx.conf", "etc/nginx/sites-available/comfyume"],
	certificates: ["etc/letsencrypt/archive/workshop/privkey1.pem", "etc/comfyume/certificates/cert.pem"],
	"root-home": ["root/.bashrc", "root/notes.txt"],
	dotfiles: ["home/dev/.oh-my-zsh/custom/themes/bullet-train.zsh-theme"],
	"project-data": ["home/dev/project/data/workflows/first-steps.json"],
	stack: ["etc/comfyume/comfyume.yaml", "etc/comfyume/stack/credentials.env"],
	"user-data": ["etc/comfyume/stack/user_data/user001/default/workflows/film.json"],
	"user-outputs": ["mnt/scratch/outputs/user001/film.png", "mnt/scratch/inputs/user001/face.png"],
}

test("24: everything that backup writes is found by restore, under the same name, and is what it was", async () => {
	using sandbox = await createSandbox()
	const server = await sandbox.fillServer()
	for (const [name, paths] of Object.entries(more))
		for (const path of paths) {
			mkdirSync(join(server, path, ".."), { recursive: true })
			writeFileSync(join(server, path), `${name}: ${path}\n`.repeat(40))
		}
	for (const path of ["root", "var/lib/ubuntu-advantage/private"]) chmodSync(join(server, path), 0o700)
	mkdirSync(join(server, "etc/letsencrypt/live/workshop"), { recursive: true })
	symlinkSync(
		"../../archive/workshop/privkey1.pem",
		join(server, "etc/letsencrypt/live/workshop/privkey.pem"),
	)
	// What must not come back, or could not.
	writeFileSync(join(server, "etc/comfyume/secrets.env"), "R2_SECRET_ACCESS_KEY=made-up\n", { mode: 0o600 })

	const catalogue = (
		await readCatalogue(
			new URL("../../..", import.meta.url).pathname,
			"app",
			{
				user: "dev",
				project: "/home/dev/project",
				scripts: "/home/dev/scripts",
				stack: "/etc/comfyume/stack",
				certificates: "/etc/comfyume/certificates",
				letsencrypt: "/etc/letsencrypt",
				outputs: "/mnt/scratch/outputs",
				inputs: "/mnt/scratch/inputs",
				backups: "/root/comfyume-backups",
			},
			new Map(),
		)
	).filter((artifact) => artifact.kind === "archive")
	const names = catalogue.map(({ name }) => name)
	for (const name of Object.keys(more))
		expect(names, "an artifact that is in the catalogue no more").toContain(name)
	const only = [...names, "project", "scripts"].filter((name) => name !== "project-archive")

	const backup = await sandbox.backup(server, { only })
	expect(backup.exitCode, JSON.stringify(backup.events, null, 1)).toBe(0)
	const fresh = await sandbox.freshServer("fresh")
	const restore = await sandbox.restore(fresh, { only })
	expect(restore.exitCode, JSON.stringify(restore.events, null, 1)).toBe(0)
	for (const name of only) expect(restore.outcome(name), name).toBe("applied")
	// A daemon that runs writes logs; what the identity is, other tests look at.
	const still = catalogue.filter(({ name }) => !["project-archive", "tailscale-identity"].includes(name))
	for (const { name, paths } of still)
		for (const path of paths.map((path) => path.slice(1)).filter((path) => !path.includes("*"))) {
			const here = path === "etc/comfyume" ? "etc/comfyume/stack" : path
			expect(sandbox.inventory(fresh, [here]), name).toBe(sandbox.inventory(server, [here]))
		}
	const again = await sandbox.restore(fresh, { only })
	expect(again.events.filter(({ event }) => event === "applying")).toEqual([])
	expect(() => sandbox.inventory(fresh, ["etc/comfyume/secrets.env"])).toThrow()
})
