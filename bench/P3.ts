// P3: a verified GET of 1 GiB (blocks' digests, synced, renamed) against rclone with its checksum, with and without TLS.
// The server's certificate is given to Node when it starts: this program starts itself again with it.
import { spawnSync } from "node:child_process"
import { join } from "node:path"
import { digestsOf, randomFile, scratch } from "./support/files.ts"
import { interleave, median, publish, versionOf } from "./support/measure.ts"
import { startNginx } from "./support/servers.ts"
import { comfyumeGet, plain, rcloneGet, secure } from "./support/transfers.ts"

const file = await randomFile("gibibyte-1")
const { blocks, md5 } = await digestsOf(file)
using server = await startNginx(scratch, "gibibyte-1", md5)
if (process.env.COMFYUME_BENCH_AGAIN === undefined) {
	server[Symbol.dispose]()
	const env = {
		...process.env,
		NODE_EXTRA_CA_CERTS: join(scratch, "nginx/certificate.pem"),
		COMFYUME_BENCH_AGAIN: "1",
	}
	process.exitCode = spawnSync(process.execPath, process.argv.slice(1), { stdio: "inherit", env }).status ?? 1
} else {
	const runsMs = await interleave({
		comfyume: comfyumeGet(plain, blocks),
		rclone: rcloneGet(plain),
		"comfyume, TLS": comfyumeGet(secure, blocks),
		"rclone, TLS": rcloneGet(secure, "--no-check-certificate"),
	})
	const tls = median(runsMs["rclone, TLS"]) / median(runsMs["comfyume, TLS"])
	publish(
		"P3",
		"verified GET of 1 GiB",
		[
			{
				what: "against rclone",
				ratio: median(runsMs.rclone) / median(runsMs.comfyume),
				goal: 1.25,
				stretch: 1.5,
			},
			{ what: "against rclone, TLS", ratio: tls, goal: 0.9, stretch: 1 },
		],
		{ runsMs, tools: { rclone: versionOf("rclone", "version"), nginx: versionOf("nginx", "-v") } },
	)
}
