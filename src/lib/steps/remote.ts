// A run on a host elsewhere: the release is put there, started, and its events are shown here. Bytes move on the
// machine that has the disk.
import { homedir } from "node:os"
import { dirname, join } from "node:path"
import type { HostConfiguration } from "../config/environment.ts"
import { type ExitCode, exitCodes, OperatorError } from "../errors.ts"
import { ensureRelease } from "../host/release.ts"
import { runOnHost } from "../host/session.ts"
import { openSshHost } from "../host/ssh.ts"
import type { Reporter } from "../plan/events.ts"
import type { Twin } from "../tailscale/tailnet.ts"
import type { Surroundings } from "../ui/surroundings.ts"
import type { SentAlong, Target } from "./open.ts"

export type RemoteOptions = {
	/** The command and its options as the host is to run them, without configuration and secrets. */
	argv: readonly string[]
	/** The key of a machine that is about to get its old identity back; accepted for this run only. */
	hostFingerprint?: string
	twin?: Twin
	reporter: Reporter
}
