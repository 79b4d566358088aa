// Servers on loopback, each a process of its own, the same for comfyume and its peers: nginx for what is fetched, and
// for what is sent a sink that speaks enough S3 and keeps nothing.
import { execFileSync, spawn } from "node:child_process"
import { existsSync, mkdirSync, writeFileSync } from "node:fs"
import { connect } from "node:net"
import { join } from "node:path"
import { scratch } from "./files.ts"

export const httpPort = 18_080
export const tlsPort = 18_443
export const sinkPort = 18_090

type Server = Disposable & { certificate: string }

/** Serves `file` as the object `vault/model`. */
export async function startNginx(directory: string, file: string, md5: string): Promise<Server> {
	const place = join(scratch, "nginx")
	mkdirSync(join(place, "root/vault"), { recursive: true })
	execFileSync("ln", ["-sf", join(directory, file), join(place, "root/vault/model")])
	const certificate = join(place, "certificate.pem")
	const key = join(place, "key.pem")
	const request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost"
	const names = ["-addext", "subjectAltName=DNS:localhost"]
	// Kept: a program that has it in NODE_EXTRA_CA_CERTS read it when it was started.
	if (!existsSync(certificate))
		execFileSync("openssl", [...request.split(" "), ...names, "-keyout", key, "-out", certificate], {
			stdio: "ignore",
		})
	const temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
	const configuration = `
worker_processes 2; daemon off; user root; pid ${place}/pid; error_log ${place}/error.log;
events { worker_connections 512; }
http {
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
  ${temporary.map((name) => `${name}_temp_path ${place}/${name};`).join(" ")}
  add_header x-amz-meta-md5chksum "${md5}"; add_header x-amz-meta-mtime "1700000000.0";
  server { listen 127.0.0.1:${httpPort}; root ${place}/root; }
  server { listen 127.0.0.1:${tlsPort} ssl; ssl_certificate ${certificate}; ssl_certificate_key ${key}; root ${place}/root; }
}
`
	writeFileSync(join(place, "nginx.conf"), configuration)
	const child = spawn("nginx", ["-c", join(place, "nginx.conf")], { stdio: "ignore" })
	await listening(httpPort)
	return { certificate, [Symbol.dispose]: () => void child.kill("SIGTERM") }
}

export async function startSink(): Promise<Disposable> {
	const extension = import.meta.url.endsWith(".ts") ? "ts" : "js"
	const program = new URL(`./sink.${extension}`, import.meta.url).pathname
	const child = spawn(process.execPath, [program, String(sinkPort)], { stdio: "inherit" })
	await listening(sinkPort)
	return { [Symbol.dispose]: () => void child.kill("SIGTERM") }
}

async function listening(port: number): Promise<void> {
	for (const deadline = performance.now() + 5000; performance.now() < deadline; ) {
		const isOpen = await new Promise<boolean>((resolve) => {
			const socket = connect(port, "127.0.0.1", () => resolve(true))
			socket.on("error", () => resolve(false))
			socket.on("connect", () => socket.destroy())
		})
		if (isOpen) return
		await new Promise((resolve) => setTimeout(resolve, 20))
	}
	throw new Error(`nothing listens on port ${port}`)
}
