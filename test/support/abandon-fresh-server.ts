// Makes a fresh server with a container in it and is killed: what the test of the clearing away begins with.
import { mkdtemp } from "node:fs/promises"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { baseImages } from "./docker-base.ts"
import { openFreshServers, scratchDevice } from "./fresh-server.ts"
import { createWorld } from "./instance/world.ts"
import { run } from "./run.ts"

const share = await mkdtemp(join(tmpdir(), "comfyume-abandoned-"))
const world = await createWorld()
const servers = await openFreshServers(world, { share, authorizedKey: "ssh-ed25519 AAAA" })
const server = await servers.freshServer("abandoned")
await servers.loadBaseImages(server)
await server.run(["docker", "run", "--detach", "--init", baseImages.redis, "sleep", "infinity"])
await server.run(["sh", "-ec", `mkfs.ext4 -q ${scratchDevice}; mount ${scratchDevice} /mnt`])

// Said before the end: afterwards, whoever makes a world may clear this one away.
const { stdout: disks } = await run("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"])
const said = JSON.stringify({ address: world.address, disks })
process.stdout.write(said, () => process.kill(process.pid, "SIGKILL"))
