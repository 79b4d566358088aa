// A thread that does one file operation after the other. It may hang as long as the mount does; nothing else runs here.
import { parentPort } from "node:worker_threads"
import { operations } from "./operations.ts"
import { serveOperations } from "./serve-operations.ts"

if (parentPort !== null) serveOperations(parentPort, operations)
