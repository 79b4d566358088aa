// What the monitoring says by itself, and what its page shows: queries in PromQL and LogQL, a table each.

type Alert = {
	alert: string
	expr: string
	for: string
	labels: { severity: "page" | "ticket" }
	annotations: { summary: string }
}

const alert = (
	name: string,
	expr: string,
	{ minutes, severity, summary }: { minutes: number; severity: "page" | "ticket"; summary: string },
): Alert => ({
	alert: name,
	expr,
	for: `${minutes}m`,
	labels: { severity },
	annotations: { summary },
})

/** Prometheus' rules. A rule whose numbers stopped coming says nothing: the first three are about that. */
export const alerts: readonly Alert[] = [
	alert("ScrapeDown", "up == 0", {
		...{ minutes: 2, severity: "page" },
		summary: "{{ $labels.job }} gives no numbers: comfyume status",
	}),
	alert("QueueManagerUnseen", 'absent(up{job="queue-manager"})', {
		...{ minutes: 5, severity: "page" },
		summary: "nobody asks the queue manager: Prometheus' configuration",
	}),
	alert(
		"LogsStopped",
		"sum(rate(loki_distributor_lines_received_total[10m])) == 0 or absent(loki_distributor_lines_received_total)",
		{
			...{ minutes: 10, severity: "ticket" },
			summary: "no container's line has arrived for ten minutes: docker logs comfy-promtail",
		},
	),
	alert("RedisDown", "comfyume_queue_redis_up == 0", {
		...{ minutes: 1, severity: "page" },
		summary: "the queue manager has no Redis: nobody can submit",
	}),
	alert(
		"NoWorker",
		'comfyume_queue_jobs{state="pending"} > 0 and on() comfyume_queue_workers{state="active"} == 0',
		{
			...{ minutes: 5, severity: "page" },
			summary: "jobs wait and no worker asks for them",
		},
	),
	alert("WaitingLong", "comfyume_queue_oldest_waiting_seconds > 1800 and on() comfyume_queue_paused == 0", {
		...{ minutes: 5, severity: "ticket" },
		summary: "a job has waited for half an hour",
	}),
	alert("DeadLetters", "increase(comfyume_queue_dead_letters_total[15m]) > 0", {
		...{ minutes: 0, severity: "ticket" },
		summary: "jobs were given up: GET /api/dead",
	}),
	alert("ForeignFiles", "increase(comfyume_queue_quarantined_files_total[15m]) > 0", {
		...{ minutes: 0, severity: "page" },
		summary: "a file carried another job's prompt and was put aside",
	}),
	alert("EndpointRefused", "comfyume_queue_endpoint_ready < 0", {
		...{ minutes: 2, severity: "page" },
		summary: "no job is sent to {{ $labels.endpoint }}: GET /api/endpoint says why",
	}),
	alert("ContainerRestarts", 'changes(container_start_time_seconds{name=~"comfy-.+"}[15m]) > 2', {
		...{ minutes: 0, severity: "page" },
		summary: "{{ $labels.name }} starts again and again: comfyume logs",
	}),
	alert(
		"MemoryTight",
		'container_memory_working_set_bytes{name=~"comfy-.+"} / (container_spec_memory_limit_bytes{name=~"comfy-.+"} > 0) > 0.95',
		{
			...{ minutes: 5, severity: "ticket" },
			summary: "{{ $labels.name }} uses nearly all of its memory",
		},
	),
	alert("DiskFilling", 'container_fs_usage_bytes{id="/"} / container_fs_limit_bytes{id="/"} > 0.9', {
		...{ minutes: 5, severity: "page" },
		summary: "{{ $labels.device }} is nine tenths full",
	}),
]

type Panel = { title: string; unit: string; queries: readonly (readonly [expr: string, legend: string])[] }

const panels: readonly Panel[] = [
	{
		title: "Jobs",
		unit: "short",
		queries: [
			['comfyume_queue_jobs{state="pending"}', "waiting"],
			['comfyume_queue_jobs{state="running"}', "running"],
		],
	},
	{
		title: "Longest wait",
		unit: "s",
		queries: [["comfyume_queue_oldest_waiting_seconds", "oldest waiting"]],
	},
	{
		title: "From submit to start",
		unit: "s",
		queries: [
			["histogram_quantile(0.5, sum by (le) (rate(comfyume_queue_wait_seconds_bucket[15m])))", "half"],
			["histogram_quantile(0.95, sum by (le) (rate(comfyume_queue_wait_seconds_bucket[15m])))", "95 %"],
		],
	},
	{
		title: "From start to end",
		unit: "s",
		queries: [
			["histogram_quantile(0.5, sum by (le) (rate(comfyume_queue_run_seconds_bucket[15m])))", "half"],
			["histogram_quantile(0.95, sum by (le) (rate(comfyume_queue_run_seconds_bucket[15m])))", "95 %"],
		],
	},
	{
		title: "Workers",
		unit: "short",
		queries: [["comfyume_queue_workers", "{{state}}"]],
	},
	{
		title: "Ends in the last hour",
		unit: "short",
		queries: [
			["increase(comfyume_queue_jobs_completed_total[1h])", "completed"],
			["increase(comfyume_queue_jobs_failed_total[1h])", "failed"],
			["increase(comfyume_queue_dead_letters_total[1h])", "given up"],
			["increase(comfyume_queue_leases_lost_total[1h])", "workers lost"],
		],
	},
	{
		title: "Fairness (1 is even)",
		unit: "short",
		queries: [["comfyume_queue_fairness_jain", "Jain's index"]],
	},
	{
		title: "Memory by container",
		unit: "bytes",
		queries: [['container_memory_working_set_bytes{name=~"comfy-.+"}', "{{name}}"]],
	},
	{
		title: "Processor by container",
		unit: "short",
		queries: [['sum by (name) (rate(container_cpu_usage_seconds_total{name=~"comfy-.+"}[5m]))', "{{name}}"]],
	},
]

/** Every query of Prometheus that is asked for, for whoever wants to know whether they are right. */
export const queries: readonly string[] = [
	...alerts.map(({ expr }) => expr),
	...panels.flatMap((panel) => panel.queries.map(([expr]) => expr)),
]

/** Grafana's page of a workshop. Pure. */
export function dashboard(domain: string) {
	const [width, height] = [12, 8]
	const charts = panels.map(({ title, unit, queries: asked }, index) => ({
		id: index + 1,
		type: "timeseries",
		title,
		datasource: { type: "prometheus", uid: "prometheus" },
		gridPos: { x: (index % 2) * width, y: Math.floor(index / 2) * height, w: width, h: height },
		fieldConfig: { defaults: { unit, min: 0 }, overrides: [] },
		targets: asked.map(([expr, legendFormat], target) => ({
			refId: String.fromCharCode(65 + target),
			expr,
			legendFormat,
		})),
	}))
	const logs = {
		id: charts.length + 1,
		type: "logs",
		title: "What containers say",
		datasource: { type: "loki", uid: "loki" },
		gridPos: { x: 0, y: Math.ceil(charts.length / 2) * height, w: 2 * width, h: 2 * height },
		targets: [{ refId: "A", expr: '{container=~"comfy-.+"}' }],
		options: { showTime: true, wrapLogMessage: true, sortOrder: "Descending" },
	}
	return {
		uid: "comfyume",
		title: `Workshop ${domain}`,
		tags: ["comfyume"],
		timezone: "browser",
		schemaVersion: 39,
		refresh: "30s",
		time: { from: "now-3h", to: "now" },
		panels: [...charts, logs],
	}
}
