// The monitoring of a workshop, a compose profile that is off unless it is configured: Prometheus asks the queue manager
// and cAdvisor for numbers, promtail hands every container's lines to Loki, Grafana shows both. Its pages are on the
// Tailscale address alone.
import { stringify } from "yaml"
import { bind, common, generatedMark, inDirectory, text, type Value } from "./compose-parts.ts"
import { files, type Limits, type Stack } from "./description.ts"
import { alerts, dashboard } from "./monitoring-views.ts"

export const monitoringPorts = {
	prometheus: 9090,
	grafana: 3001,
	loki: 3100,
	cadvisor: 8081,
	portainer: 9001,
} as const

const limits = {
	prometheus: { memoryMegabytes: 1024, cpus: 1 },
	grafana: { memoryMegabytes: 512, cpus: 1 },
	loki: { memoryMegabytes: 1024, cpus: 1 },
	promtail: { memoryMegabytes: 256, cpus: 0.5 },
	cadvisor: { memoryMegabytes: 512, cpus: 0.5 },
	portainer: { memoryMegabytes: 256, cpus: 0.5 },
} satisfies Record<string, Limits>

const places = {
	prometheus: "monitoring/prometheus.yml",
	rules: "monitoring/rules.yml",
	loki: "monitoring/loki.yml",
	promtail: "monitoring/promtail.yml",
	sources: "monitoring/grafana/datasources/comfyume.yaml",
	providers: "monitoring/grafana/dashboards/comfyume.yaml",
	dashboard: "monitoring/grafana/dashboards/workshop.json",
} as const

const lokiKeptHours = 168

/** The compose file of the profile and what its services read; nothing where it isn't configured. Pure. */
export function renderMonitoring(stack: Stack): { path: string; text: string }[] {
	const { monitoring } = stack.configuration
	if (monitoring === undefined) return []
	return [
		{ path: files.composeMonitoring, text: renderCompose(stack, monitoring) },
		{ path: places.prometheus, text: yaml(prometheus(stack)) },
		{ path: places.rules, text: yaml({ groups: [{ name: "workshop", rules: alerts }] }) },
		{ path: places.loki, text: yaml(loki) },
		{ path: places.promtail, text: yaml(promtail) },
		{ path: places.sources, text: yaml(sources) },
		{ path: places.providers, text: yaml(providers) },
		{ path: places.dashboard, text: `${JSON.stringify(dashboard(stack.domain), null, "\t")}\n` },
	]
}

type Monitoring = NonNullable<Stack["configuration"]["monitoring"]>

function renderCompose(stack: Stack, { address, retentionDays, images }: Monitoring): string {
	const service = (name: keyof typeof limits, more: { [key: string]: Value }): Value => ({
		...common(`comfy-${name}`, images[name], limits[name]),
		profiles: [name === "portainer" ? "portainer" : "monitoring"],
		networks: ["monitoring"],
		...more,
	})
	const file = (from: string, to: string) => bind({ from: inDirectory(stack, from), to, writable: false })
	const readable = (path: string, to = path) => bind({ from: path, to, writable: false })
	const volume = (source: string, target: string): Value => ({ type: "volume", source, target })
	const published = (name: keyof typeof monitoringPorts, port: number) => [
		`${address}:${monitoringPorts[name]}:${port}`,
	]
	return text({
		services: {
			prometheus: service("prometheus", {
				command: [
					"--config.file=/etc/prometheus/prometheus.yml",
					"--storage.tsdb.path=/prometheus",
					`--storage.tsdb.retention.time=${retentionDays}d`,
				],
				volumes: [
					file(places.prometheus, "/etc/prometheus/prometheus.yml"),
					file(places.rules, "/etc/prometheus/rules.yml"),
					volume("prometheus-data", "/prometheus"),
				],
				networks: ["monitoring", "control"],
				ports: published("prometheus", 9090),
			}),
			grafana: service("grafana", {
				environment: {
					GF_SECURITY_ADMIN_PASSWORD: { variable: "GRAFANA_ADMIN_PASSWORD" },
					GF_AUTH_ANONYMOUS_ENABLED: "false",
					GF_LOG_MODE: "console",
					GF_USERS_ALLOW_SIGN_UP: "false",
					GF_ANALYTICS_REPORTING_ENABLED: "false",
					GF_ANALYTICS_CHECK_FOR_UPDATES: "false",
				},
				tmpfs: ["/tmp"],
				volumes: [
					file("monitoring/grafana", "/etc/grafana/provisioning"),
					volume("grafana-data", "/var/lib/grafana"),
				],
				ports: published("grafana", 3000),
			}),
			loki: service("loki", {
				command: ["-config.file=/etc/loki/loki.yml"],
				volumes: [file(places.loki, "/etc/loki/loki.yml"), volume("loki-data", "/loki")],
			}),
			// Docker's own files and not its socket: whoever has that is root on the host.
			promtail: service("promtail", {
				command: ["-config.file=/etc/promtail/promtail.yml"],
				cap_add: ["DAC_READ_SEARCH"],
				volumes: [
					file(places.promtail, "/etc/promtail/promtail.yml"),
					readable("/var/lib/docker/containers"),
					volume("promtail-data", "/var/lib/promtail"),
				],
			}),
			cadvisor: service("cadvisor", {
				command: ["--docker_only=true", "--store_container_labels=false", "--housekeeping_interval=15s"],
				cap_add: ["DAC_READ_SEARCH"],
				volumes: [
					readable("/", "/rootfs"),
					readable("/sys"),
					readable("/var/lib/docker"),
					// cAdvisor learns the containers' names from the engine; it only asks.
					readable("/var/run/docker.sock"),
				],
				ports: published("cadvisor", 8080),
			}),
			// It may do what Docker may: a profile of its own, for those who want it.
			portainer: service("portainer", {
				environment: {
					EDGE: "1",
					EDGE_ID: { variable: "VERDA_EDGE_ID" },
					EDGE_KEY: { variable: "VERDA_EDGE_KEY" },
					CAP_HOST_MANAGEMENT: "0",
				},
				volumes: [
					bind({ from: "/var/run/docker.sock", to: "/var/run/docker.sock", writable: true }),
					readable("/var/lib/docker/volumes"),
					volume("portainer-data", "/data"),
				],
			}),
		},
		networks: { monitoring: {} },
		volumes: {
			"prometheus-data": {},
			"grafana-data": {},
			"loki-data": {},
			"promtail-data": {},
			"portainer-data": {},
		},
	})
}

const prometheus = ({ services, domain }: Stack) => ({
	global: { scrape_interval: "15s", evaluation_interval: "15s", external_labels: { workshop: domain } },
	rule_files: ["/etc/prometheus/rules.yml"],
	scrape_configs: [
		{ job_name: "prometheus", static_configs: [{ targets: ["127.0.0.1:9090"] }] },
		{
			job_name: "queue-manager",
			static_configs: [{ targets: [`${services.queueManager.container}:${services.queueManager.port}`] }],
		},
		{ job_name: "cadvisor", static_configs: [{ targets: ["comfy-cadvisor:8080"] }] },
		// What arrives there tells how old the last line is: shipping that died is seen.
		{ job_name: "loki", static_configs: [{ targets: [`comfy-loki:${monitoringPorts.loki}`] }] },
		{ job_name: "promtail", static_configs: [{ targets: ["comfy-promtail:9080"] }] },
	],
})

const loki = {
	auth_enabled: false,
	server: { http_listen_port: monitoringPorts.loki },
	common: {
		// A volume; data in /tmp was once lost with every restart.
		path_prefix: "/loki",
		replication_factor: 1,
		ring: { kvstore: { store: "inmemory" } },
		storage: { filesystem: { chunks_directory: "/loki/chunks", rules_directory: "/loki/rules" } },
	},
	schema_config: {
		configs: [
			{
				from: "2026-01-01",
				store: "tsdb",
				object_store: "filesystem",
				schema: "v13",
				index: { prefix: "index_", period: "24h" },
			},
		],
	},
	limits_config: { retention_period: `${lokiKeptHours}h`, reject_old_samples_max_age: `${lokiKeptHours}h` },
	compactor: {
		working_directory: "/loki/compactor",
		retention_enabled: true,
		delete_request_store: "filesystem",
	},
	analytics: { reporting_enabled: false },
}

const promtail = {
	server: { http_listen_port: 9080, grpc_listen_port: 0 },
	// Where it stopped reading, on a volume: in /tmp it began anew each time.
	positions: { filename: "/var/lib/promtail/positions.yaml" },
	clients: [{ url: `http://comfy-loki:${monitoringPorts.loki}/loki/api/v1/push` }],
	scrape_configs: [
		{
			job_name: "containers",
			static_configs: [
				{
					targets: ["localhost"],
					labels: { job: "containers", __path__: "/var/lib/docker/containers/*/*-json.log" },
				},
			],
			pipeline_stages: [
				{ json: { expressions: { output: "log", stream: "stream", attrs: "attrs", time: "time" } } },
				{ json: { source: "attrs", expressions: { container: "tag" } } },
				{ timestamp: { source: "time", format: "RFC3339Nano" } },
				{ labels: { stream: "", container: "" } },
				{ match: { selector: '{container!~"comfy-.+"}', action: "drop" } },
				{ output: { source: "output" } },
			],
		},
	],
}

const sources = {
	apiVersion: 1,
	datasources: [
		{
			name: "Prometheus",
			uid: "prometheus",
			type: "prometheus",
			url: "http://comfy-prometheus:9090",
			isDefault: true,
		},
		{ name: "Loki", uid: "loki", type: "loki", url: `http://comfy-loki:${monitoringPorts.loki}` },
	],
}

const providers = {
	apiVersion: 1,
	providers: [{ name: "comfyume", type: "file", options: { path: "/etc/grafana/provisioning/dashboards" } }],
}

// Their readers are no compose: nothing in these has its `$` doubled.
const yaml = (value: object) => `${generatedMark}\n${stringify(value, { version: "1.1", lineWidth: 0 })}`
