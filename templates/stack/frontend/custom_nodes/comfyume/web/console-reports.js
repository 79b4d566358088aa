// Errors of the browser's console, told to the queue manager for the operators to see: few, short, and without secrets.
import { app } from "../../scripts/app.js"
import { report } from "./lib/queue-manager.js"
import { scrub } from "./lib/scrub.js"
import { isOn } from "./lib/settings.js"

const sameAgainMs = 10 * 60_000
const mostPerMinute = 6
const mostPerPage = 60
const mostLength = 2000
const collectMs = 1000

/** What was seen, and when it was reported last. */
const seen = new Map()
let sent = []
let total = 0
let isReporting = false

app.registerExtension({
	name: "comfyume.ConsoleReports",
	async init() {
		if (await isOn("console-reports")) listen()
	},
})

function listen() {
	window.addEventListener("error", ({ message, error, filename, lineno }) => {
		note("error", error?.stack ?? `${message} (${filename}:${lineno})`)
	})
	window.addEventListener("unhandledrejection", ({ reason }) => note("rejection", textOf(reason)))
	const native = console.error
	console.error = (...what) => {
		native.apply(console, what)
		note("console", what.map(textOf).join(" "))
	}
}

function textOf(what) {
	if (what instanceof Error) return what.stack?.includes(what.message) ? what.stack : `${what}`
	if (typeof what === "string") return what
	try {
		return JSON.stringify(what) ?? String(what)
	} catch {
		return String(what)
	}
}

function note(kind, text) {
	// Nothing that is done in here may come back as a report.
	if (isReporting) return
	isReporting = true
	try {
		const message = scrub(text).slice(0, mostLength) || "an error without words"
		const now = Date.now()
		const known = seen.get(message)
		if (known !== undefined && (known.isWaiting || now - known.atMs < sameAgainMs)) {
			known.count += 1
			return
		}
		sent = sent.filter((atMs) => now - atMs < 60_000)
		if (sent.length >= mostPerMinute || total >= mostPerPage) return
		sent.push(now)
		total += 1
		const entry = { atMs: now, count: (known?.count ?? 0) + 1, isWaiting: true }
		seen.set(message, entry)
		setTimeout(() => send(kind, message, entry), collectMs)
	} finally {
		isReporting = false
	}
}

function send(kind, message, entry) {
	entry.isWaiting = false
	const { count } = entry
	entry.count = 0
	const context = {
		kind,
		count,
		page: location.pathname,
		frontend: String(window.__COMFYUI_FRONTEND_VERSION__ ?? "unknown"),
		browser: navigator.userAgent.slice(0, 200),
	}
	// Who can't report has nobody to tell.
	report({ level: "error", message, context }).catch(() => undefined)
}
