// P5: a verified GET of 1 GiB against the fastest peer that doesn't verify.
import { digestsOf, randomFile, scratch } from "./support/files.ts"
import { interleave, median, publish, versionOf } from "./support/measure.ts"
import { startNginx } from "./support/servers.ts"
import { comfyumeGet, curlGet, plain, rcloneGet } from "./support/transfers.ts"

const { blocks, md5 } = await digestsOf(await randomFile("gibibyte-1"))
using _server = await startNginx(scratch, "gibibyte-1", md5)
const runsMs = await interleave({
	comfyume: comfyumeGet(plain, blocks),
	curl: curlGet,
	"rclone, no checksum": rcloneGet(plain, "--ignore-checksum", "--multi-thread-streams", "8"),
})
const fastest = Math.min(median(runsMs.curl), median(runsMs["rclone, no checksum"]))
publish(
	"P5",
	"verified GET of 1 GiB",
	[
		{
			what: "against the fastest that doesn't verify",
			ratio: fastest / median(runsMs.comfyume),
			goal: 0.4,
			stretch: 0.5,
		},
	],
	{ runsMs, tools: { curl: versionOf("curl", "--version"), rclone: versionOf("rclone", "version") } },
)
