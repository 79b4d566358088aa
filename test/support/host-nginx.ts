// The machine's own nginx in a directory that stands in for the machine: the real program, and a stand-in for systemd that
// knows its unit alone.
import { mkdirSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { poll } from "./poll.ts"
import { run } from "./run.ts"

const systemctl = (root: string) => `#!/bin/sh
# STAND-IN for systemctl: it knows nginx.service alone, whose process is the real nginx.
pid() { cat ${root}/run/nginx.pid 2>/dev/null; }
alive() { [ -n "$(pid)" ] && kill -0 "$(pid)" 2>/dev/null; }
start() {
	alive && return 0
	[ ! -e ${root}/broken ] || { echo "Job for nginx.service failed." >&2; return 1; }
	nginx
}
stop() {
	alive || return 0
	kill -QUIT "$(pid)"
	while alive; do sleep 0.05; done
}
verb= now=
for word in "$@"; do
	case $word in
		--now) now=yes ;;
		--quiet) ;;
		nginx.service) ;;
		-*) echo "stand-in systemctl: $word" >&2; exit 1 ;;
		*) verb=$word ;;
	esac
done
case $verb in
	is-active) alive ;;
	is-enabled) [ -e ${root}/enabled ] ;;
	enable) : >${root}/enabled; [ -z "$now" ] || start ;;
	disable) rm -f ${root}/enabled; [ -z "$now" ] || stop ;;
	start) start ;;
	stop) stop ;;
	reload) kill -HUP "$(pid)" ;;
	*) echo "stand-in systemctl: $verb" >&2; exit 1 ;;
esac
`

/** @param root the directory that stands in for the machine */
export function hostNginx(root: string) {
	const path = (...parts: string[]) => join(root, ...parts)
	mkdirSync(path("usr/local/bin"), { recursive: true })
	mkdirSync(path("etc/nginx/conf.d"), { recursive: true })
	mkdirSync(path("run"), { recursive: true })
	writeFileSync(path("usr/local/bin/systemctl"), systemctl(root), { mode: 0o755 })
	writeFileSync(
		path("usr/local/bin/nginx"),
		`#!/bin/sh\nexec /usr/sbin/nginx -c ${path("etc/nginx/nginx.conf")} "$@"\n`,
		{ mode: 0o755 },
	)
	writeFileSync(
		path("etc/nginx/nginx.conf"),
		`user root;
worker_processes 1;
pid ${path("run/nginx.pid")};
error_log ${path("run/error.log")};
events {}
http {
	access_log off;
	client_body_temp_path ${path("run/body")};
	proxy_temp_path ${path("run/proxy")};
	fastcgi_temp_path ${path("run/fastcgi")};
	uwsgi_temp_path ${path("run/uwsgi")};
	scgi_temp_path ${path("run/scgi")};
	include ${path("etc/nginx/conf.d")}/*.conf;
}
`,
	)
	const ask = async (...words: string[]) =>
		(
			await run(path("usr/local/bin/systemctl"), words, {
				allowedExitCodes: "any",
				environment: environment(root),
			})
		).exitCode === 0
	return {
		isActive: () => ask("is-active", "nginx.service"),
		isEnabled: () => ask("is-enabled", "nginx.service"),
		enableNow: () => ask("enable", "--now", "nginx.service"),
		/** From now on it can't be started. */
		breakStart: () => writeFileSync(path("broken"), ""),
		repairStart: () => rmSync(path("broken"), { force: true }),
		async [Symbol.asyncDispose]() {
			await ask("stop", "nginx.service")
			await poll(async () => !(await ask("is-active", "nginx.service")), {
				...{ what: "the end of nginx", deadlineMs: 20_000 },
			})
		},
	}
}

const environment = (root: string) => ({ PATH: `${root}/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin` })
