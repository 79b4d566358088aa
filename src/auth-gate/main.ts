// The auth gate's process: its environment, its port, its signals.
import { z } from "zod"
import { exitCodes, messageOf } from "../lib/errors.ts"
import { Secret } from "../lib/secret.ts"
import { openPasswords } from "./passwords.ts"
import { createGate } from "./server.ts"

const schema = z.object({
	HOST: z.string().default("0.0.0.0"),
	PORT: z.coerce.number().int().min(1).max(65_535).default(8090),
	HTPASSWD_FILE: z.string().startsWith("/"),
	ADMIN_USERNAME: z.string().regex(/^[a-z][a-z0-9_-]{0,31}$/),
	AUTH_COOKIE_SECRET: z.string().min(32, "needs at least 32 letters"),
})

const read = schema.safeParse(process.env)
if (read.success) start(read.data)
else {
	// Never a value: one of them is a secret.
	for (const { path, message } of read.error.issues)
		process.stderr.write(`auth-gate: ${path.join(".")}: ${message}\n`)
	process.exitCode = exitCodes.usage
}

function start(environment: z.infer<typeof schema>): void {
	const now = () => Date.now()
	const server = createGate({
		passwords: openPasswords(environment.HTPASSWD_FILE, now),
		adminName: environment.ADMIN_USERNAME,
		sessionKey: new Secret(environment.AUTH_COOKIE_SECRET),
		now,
	})
	server.on("error", (error) => {
		process.stderr.write(`auth-gate: ${messageOf(error)}\n`)
		process.exit(exitCodes.incomplete)
	})
	server.listen(environment.PORT, environment.HOST, () => process.stderr.write("auth-gate: listening\n"))
	for (const signal of ["SIGTERM", "SIGINT"] as const) {
		process.once(signal, () => {
			server.close(() => process.exit(0))
			server.closeIdleConnections()
			setTimeout(() => process.exit(0), 2000).unref()
		})
	}
}
