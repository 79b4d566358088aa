import { writeFileSync } from "node:fs"
import { makeServer } from "./support/whole.ts"

const { servers, server } = await makeServer()
writeFileSync(
	"/tmp/dev.json",
	JSON.stringify({
		laptop: servers.workshop.laptop,
		root: server.root,
		address: server.address,
		manifest: servers.manifest,
		env: servers.workshop.environmentName,
		key: servers.key,
	}),
)
console.log("ready")
setInterval(() => {}, 1e6)
