// Makes a world with an instance in it and is killed: what the test of the clearing away begins with.
import { createWorld } from "./world.ts"

const world = await createWorld()
const instance = await world.createInstance({
	name: "abandoned",
	hostname: "app-1",
	authorizedKey: "ssh-ed25519 AAAA",
})
await instance.waitForSsh()
process.stdout.write(`${world.address}\n`, () => process.kill(process.pid, "SIGKILL"))
