// nginx's configuration, for its container and for the host's own nginx. What matters in it:
// - the path goes on as it came in: ComfyUI tells %2F from /, so nothing here may decode it;
// - every upstream is a variable: a container that is down costs its own answers, not nginx's start;
// - whoever is not let in by the auth gate sees nothing but the health page and ACME's challenges.
import type { Stack, User } from "./description.ts"

const mark = "# Written by comfyume generate-users; changes here are lost."

export type NginxPlaces = {
	/** Where the rendered files lie, as nginx sees them. */
	configuration: string
	certificates: string
	acme: string
	outputs: string
	/** Docker's own name server; undefined where all addresses are numbers. */
	resolver: string | undefined
	/** What 80 and 443 are here. */
	ports: { http: number; https: number }
}

/** Where things lie for the container or for the host's nginx. */
export function nginxPlaces({ hasNginx, configuration }: Stack): NginxPlaces {
	const { directory, paths, ports } = configuration
	if (!hasNginx)
		return {
			configuration: `${directory}/nginx`,
			certificates: paths.certificates,
			acme: paths.acme,
			outputs: paths.outputs,
			resolver: undefined,
			ports,
		}
	return {
		configuration: "/etc/nginx/comfyume",
		certificates: "/etc/nginx/ssl",
		acme: "/var/www/certbot",
		outputs: "/srv/comfyume/outputs",
		resolver: "127.0.0.11",
		ports: { http: 80, https: 443 },
	}
}

/** The container's `nginx.conf`, which includes the site. Pure. */
export const renderNginxMain = ({ configuration }: NginxPlaces): string => `${mark}
worker_processes auto;
pid /run/nginx.pid;
error_log stderr warn;

events {
	worker_connections 4096;
}

http {
	include /etc/nginx/mime.types;
	default_type application/octet-stream;
	access_log /dev/stdout;
	sendfile on;
	include ${configuration}/comfyume.conf;
}
`

/**
 * The secret by which the queue manager knows nginx; included by the site. Pure.
 * @throws {Error} when it holds something that nginx would read as more than text
 */
export function renderProxySecret(secret: string): string {
	if (!/^[A-Za-z0-9_-]{32,}$/.test(secret)) throw new Error("the proxy secret is not of the safe alphabet")
	return `${mark}\nmap $host $comfyume_proxy_secret {\n\tdefault "${secret}";\n}\n`
}

/** The site: maps and servers, to stand in nginx's `http` block. Pure. */
export function renderNginxSite(stack: Stack, places: NginxPlaces): string {
	const { domain, users, hasNginx, configuration, services } = stack
	const at = ({ container, port, hostPort }: { container: string; port: number; hostPort: number }) =>
		hasNginx ? `${container}:${port}` : `127.0.0.1:${hostPort}`
	const frontendAt = (user: User) => at({ ...user, port: stack.frontendPort })
	const { http, https } = places.ports
	const origin = https === 443 ? domain : `${domain}:${https}`
	return `${mark}
map_hash_max_size 4096;
map_hash_bucket_size 128;
server_names_hash_bucket_size 256;
${places.resolver === undefined ? "" : `resolver ${places.resolver} valid=10s ipv6=off;\nresolver_timeout 5s;\n`}
include ${places.configuration}/proxy-secret.conf;

map $http_upgrade $comfyume_connection {
	default upgrade;
	"" "";
}

# The frontends' addresses; a user without one doesn't exist.
map $comfyume_user $comfyume_frontend {
	default "";
${users.map((user) => `\t${user.id} ${frontendAt(user)};`).join("\n")}
}

# What comes behind the user's door, as it came in and not decoded. Empty when the path names another door than the one
# that nginx found by its decoded form: then nothing is passed on.
map "$comfyume_user:$request_uri" $comfyume_user_path {
	default "";
	"~^(?<comfyume_n>user[0-9][0-9][0-9]):/\\k<comfyume_n>(?<comfyume_p>/[^?]*)" $comfyume_p;
}

map $request_uri $comfyume_admin_path {
	default "";
	"~^/admin(?<comfyume_a>/[^?]*)" $comfyume_a;
}

# The session is nginx's and the gate's: code that users put into frontends has no business with it.
map $http_cookie $comfyume_cookies {
	default $http_cookie;
	"~^(?<comfyume_b>.*?)(?:; *)?__Host-comfyume=[^;]*(?<comfyume_e>.*)$" "$comfyume_b$comfyume_e";
}

server {
	listen ${http} default_server;
	server_name _;
	server_tokens off;
	absolute_redirect off;
${headers(0)}

	location = /health/ping {
		default_type text/plain;
		return 200 "healthy\\n";
	}

	location / {
		return 421;
	}
}

server {
	listen ${http};
	server_name ${domain};
	server_tokens off;
${headers(0)}

	location ^~ /.well-known/acme-challenge/ {
		root ${places.acme};
		default_type text/plain;
	}

	location = /health/ping {
		default_type text/plain;
		return 200 "healthy\\n";
	}

	location / {
		return 301 https://${origin}$request_uri;
	}
}

# No certificate for names that are not ours.
server {
	listen ${https} ssl http2 default_server;
	server_name _;
	ssl_reject_handshake on;
}

server {
	listen ${https} ssl http2;
	server_name ${domain};
	server_tokens off;
	absolute_redirect off;

	ssl_certificate ${places.certificates}/cert.pem;
	ssl_certificate_key ${places.certificates}/key.pem;
	ssl_protocols TLSv1.2 TLSv1.3;
	ssl_ciphers ECDHE+AESGCM:ECDHE+CHACHA20;
	ssl_session_cache shared:comfyume:10m;
	ssl_session_tickets off;

	client_max_body_size ${configuration.maxBodyMegabytes}m;
	client_body_timeout 120s;
	large_client_header_buffers 4 16k;
	proxy_http_version 1.1;
	proxy_connect_timeout 5s;
	proxy_read_timeout ${configuration.apiTimeoutSeconds}s;
	proxy_send_timeout ${configuration.apiTimeoutSeconds}s;
	# An upload goes on as it comes in: gigabytes have no place on nginx's disk.
	proxy_request_buffering off;
	proxy_max_temp_file_size 0;
${headers(configuration.hstsSeconds)}

	set $comfyume_gate ${at(services.authGate)};
	set $comfyume_manager ${at(services.queueManager)};
	set $comfyume_admin ${at(services.admin)};

	error_page 403 = @refused;

	location @refused {
		internal;
		default_type text/plain;
		if ($comfyume_reason = slow) {
			return 429 "Too many wrong passwords. Wait a minute.\\n";
		}
		return 403 "This is somebody else's door. Sign out at /sign-out to sign in as another user.\\n";
	}

	location = /_comfyume/check {
		internal;
		proxy_pass http://$comfyume_gate/check;
		proxy_pass_request_body off;
		proxy_set_header Host $host;
		proxy_set_header Content-Length "";
		proxy_set_header Transfer-Encoding "";
		proxy_set_header Connection "";
		proxy_set_header X-Comfyume-Door $comfyume_door;
		proxy_set_header X-Comfyume-Address $remote_addr;
		proxy_read_timeout 15s;
	}

	location = /health {
		alias ${places.configuration}/html/health.html;
		default_type text/html;
	}

	location = /health/ping {
		default_type text/plain;
		return 200 "healthy\\n";
	}

	location = /favicon.ico {
		return 204;
	}

	# The gate itself: it sends whoever signs in to the own door, and forgets a session.
	location ~ ^/(?:sign-out)?$ {
		proxy_pass http://$comfyume_gate$uri;
		proxy_set_header Host $host;
		proxy_set_header Content-Length "";
		proxy_set_header Connection "";
		proxy_set_header X-Comfyume-Door any;
		proxy_set_header X-Comfyume-Address $remote_addr;
		proxy_pass_request_body off;
	}

	location ~ ^/(user[0-9][0-9][0-9])$ {
		return 301 /$1/;
	}

	location ~ ^/(user[0-9][0-9][0-9])/ {
		set $comfyume_user $1;
		set $comfyume_door $1;
		if ($comfyume_user_path = "") {
			return 400;
		}
${gated(configuration.hstsSeconds)}
		proxy_pass http://$comfyume_frontend$comfyume_user_path$is_args$args;
		proxy_read_timeout 86400s;
		proxy_send_timeout 86400s;
		proxy_buffering off;
${passed("frontend")}
	}

	location /api/ {
		set $comfyume_door any;
${gated(configuration.hstsSeconds)}
		proxy_pass http://$comfyume_manager$request_uri;
		proxy_buffering off;
${passed("manager")}
	}

	location = /ws {
		set $comfyume_door any;
${gated(configuration.hstsSeconds)}
		proxy_pass http://$comfyume_manager$request_uri;
		proxy_read_timeout 86400s;
		proxy_send_timeout 86400s;
${passed("manager")}
	}

	location = /admin {
		return 301 /admin/;
	}

	location /admin/ {
		set $comfyume_door admin;
		if ($comfyume_admin_path = "") {
			return 400;
		}
${gated(configuration.hstsSeconds)}
		proxy_pass http://$comfyume_admin$comfyume_admin_path$is_args$args;
		proxy_buffering off;
${passed("admin")}
	}

	# Each user's own results. What lies there was written by users' code: it is shown and never run, and no link in
	# it leads to another's.
	location ~ ^/outputs/(user[0-9][0-9][0-9])(?<comfyume_file>/.*)$ {
		set $comfyume_door $1;
${gated(configuration.hstsSeconds)}
		add_header Content-Security-Policy "sandbox; default-src 'none'; img-src 'self'; media-src 'self'; style-src 'unsafe-inline'" always;
		alias ${places.outputs}/$comfyume_door$comfyume_file;
		disable_symlinks on from=${places.outputs};
		autoindex on;
		autoindex_exact_size off;
	}

	location / {
		return 404;
	}
}
`
}

// A location with one header of its own inherits none of the server's: so every one that has its own has all.
function headers(hstsSeconds: number, indent = "\t"): string {
	const lines = [
		`add_header X-Content-Type-Options nosniff always;`,
		`add_header X-Frame-Options SAMEORIGIN always;`,
		`add_header Referrer-Policy same-origin always;`,
		...(hstsSeconds === 0 ? [] : [`add_header Strict-Transport-Security "max-age=${hstsSeconds}" always;`]),
	]
	return lines.map((line) => indent + line).join("\n")
}

// The session's cookie goes out only with an answer below 400: without `always`, nginx leaves it off all others, and
// the gate gives one only to whoever showed a right password.
const gated = (hstsSeconds: number) => `		auth_request /_comfyume/check;
		auth_request_set $comfyume_name $upstream_http_x_comfyume_user;
		auth_request_set $comfyume_role $upstream_http_x_comfyume_role;
		auth_request_set $comfyume_reason $upstream_http_x_comfyume_reason;
		auth_request_set $comfyume_session $upstream_http_set_cookie;
		add_header Set-Cookie $comfyume_session;
${headers(hstsSeconds, "\t\t")}`

// Whatever the client sent under these names is replaced. Only the queue manager hears who it is, with the secret.
function passed(to: "frontend" | "manager" | "admin"): string {
	const told = to === "manager"
	const lines = [
		["Host", "$host"],
		["Upgrade", "$http_upgrade"],
		["Connection", "$comfyume_connection"],
		["X-Real-IP", "$remote_addr"],
		["X-Forwarded-For", "$remote_addr"],
		["X-Forwarded-Proto", "https"],
		["Authorization", '""'],
		["Cookie", "$comfyume_cookies"],
		["X-Comfyume-User", told ? "$comfyume_name" : '""'],
		["X-Comfyume-Role", told ? "$comfyume_role" : '""'],
		["X-Comfyume-Proxy", told ? "$comfyume_proxy_secret" : '""'],
	]
	return lines.map(([name, value]) => `\t\tproxy_set_header ${name} ${value};`).join("\n")
}

/** The page of `/health`: that nginx answers. Pure. */
export const renderHealthPage = ({ domain }: Stack): string =>
	`<!doctype html>\n<meta charset="utf-8">\n<title>${domain}</title>\n<p>nginx answers. Sign in at <a href="/">${domain}</a>.</p>\n`
