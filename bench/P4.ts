// P4: a verified GET of 1 GiB against `aws s3 cp`, which doesn't verify.
import { digestsOf, randomFile, scratch } from "./support/files.ts"
import { interleave, median, publish, versionOf } from "./support/measure.ts"
import { startNginx } from "./support/servers.ts"
import { awsGet, comfyumeGet, plain } from "./support/transfers.ts"

const { blocks, md5 } = await digestsOf(await randomFile("gibibyte-1"))
using _server = await startNginx(scratch, "gibibyte-1", md5)
const runsMs = await interleave({ comfyume: comfyumeGet(plain, blocks), aws: awsGet })
const ratio = median(runsMs.aws) / median(runsMs.comfyume)
publish("P4", "verified GET of 1 GiB", [{ what: "against aws s3 cp", ratio, goal: 1.5, stretch: 2 }], {
	runsMs,
	tools: { aws: versionOf("aws", "--version") },
})
