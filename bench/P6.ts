// P6: PUT of 1 GiB in parts with all digests, against rclone and aws.
import { digestsOf, randomFile } from "./support/files.ts"
import { interleave, median, publish, versionOf } from "./support/measure.ts"
import { startSink } from "./support/servers.ts"
import { awsPut, comfyumePut, rclonePut } from "./support/transfers.ts"

const file = await randomFile("gibibyte-1")
const { digest } = await digestsOf(file)
using _sink = await startSink()
const runsMs = await interleave({
	comfyume: comfyumePut(file, digest),
	rclone: rclonePut(file),
	aws: awsPut(file),
})
const ours = median(runsMs.comfyume)
publish(
	"P6",
	"PUT of 1 GiB in parts, with all digests",
	[
		{ what: "against rclone", ratio: median(runsMs.rclone) / ours, goal: 1.5, stretch: 2 },
		{ what: "against aws s3 cp", ratio: median(runsMs.aws) / ours, goal: 0.8, stretch: 1 },
	],
	{
		runsMs,
		tools: { rclone: versionOf("rclone", "version"), aws: versionOf("aws", "--version") },
		notes: ["The sink keeps nothing and checks nothing; it is the same for all."],
	},
)
