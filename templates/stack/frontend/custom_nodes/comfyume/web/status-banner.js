// One calm strip at the lower edge: what the user's jobs are doing, and what the instructor has to say.
import { app } from "../../scripts/app.js"
import { forgetEnded, onChange, start, state } from "./lib/jobs.js"
import { isOn } from "./lib/settings.js"
import { describe } from "./lib/strip-text.js"

// What went well is told for a moment; what went wrong until it is read.
const lingerMs = 8000

app.registerExtension({
	name: "comfyume.StatusBanner",
	async setup() {
		if (!(await isOn("status-banner"))) return
		const strip = createStrip()
		onChange(() => strip.render(state()))
		await start()
		strip.render(state())
	},
})

function createStrip() {
	const style = document.createElement("style")
	style.textContent = css
	document.head.append(style)

	const root = element("section", "comfyume-strip", { "aria-label": "The workshop's queue" })
	const message = element("p", "comfyume-message", { role: "status", "aria-live": "polite" })
	const status = element("div", "comfyume-status")
	const mark = element("span", "comfyume-mark", { "aria-hidden": "true" })
	const words = element("div", "comfyume-words")
	const title = element("p", "comfyume-title", {
		role: "status",
		"aria-live": "polite",
		"aria-atomic": "true",
	})
	// Changes with every step: shown, and not read out each time.
	const detail = element("p", "comfyume-detail")
	const close = element("button", "comfyume-close", { type: "button", "aria-label": "Hide this message" })
	const bar = element("div", "comfyume-bar", {
		role: "progressbar",
		"aria-label": "Progress",
		"aria-valuemin": "0",
		"aria-valuemax": "100",
	})
	const fill = element("div", "comfyume-fill")
	close.textContent = "×"
	words.append(title, detail)
	status.append(mark, words, close)
	bar.append(fill)
	root.append(message, status, bar)
	document.body.append(root)
	close.addEventListener("click", forgetEnded)

	let lingering

	function render({ round, isLinked, banner, notice }) {
		const said = notice ?? describe(round, titleOf)
		const isAway = !isLinked && said !== undefined && said.isOver !== true && notice === undefined
		set(message, banner.text)
		message.dataset.level = banner.level
		set(title, said?.title ?? "")
		set(
			detail,
			isAway ? "The connection to the queue is lost; your jobs go on. Trying again…" : (said?.detail ?? ""),
		)
		close.hidden = said === undefined || !(said.isOver === true || notice?.tone === "bad")
		root.dataset.phase =
			notice === undefined ? (said?.phase ?? "idle") : notice.tone === "bad" ? "failed" : "queued"
		status.hidden = said === undefined
		root.hidden = said === undefined && banner.text === ""
		const share = said?.share
		bar.hidden = share === undefined || said.isOver === true
		if (share !== undefined) {
			const value = Math.round(share * 100)
			fill.style.transform = `scaleX(${share})`
			bar.setAttribute("aria-valuenow", String(value))
		}
		const goes = said?.isOver === true && said.phase !== "failed"
		if (goes && lingering === undefined) lingering = setTimeout(forgetEnded, lingerMs)
		if (!goes) {
			clearTimeout(lingering)
			lingering = undefined
		}
	}

	return { render }
}

function element(name, className, attributes = {}) {
	const made = document.createElement(name)
	made.className = className
	for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value)
	return made
}

// A live region that is written to is read out, changed or not.
function set(where, text) {
	if (where.textContent !== text) where.textContent = text
	where.hidden = text === ""
}

function titleOf(node) {
	// A node within a subgraph has an id like 12:3; its own name is the last one's.
	const graph = app.rootGraph ?? app.graph
	return graph?.getNodeById?.(node)?.title
}

const css = `
.comfyume-strip {
	--comfyume-ground: var(--comfy-menu-bg, #1b1c20);
	--comfyume-ink: var(--input-text, #e4e4e7);
	--comfyume-quiet: var(--descrip-text, #a1a1aa);
	--comfyume-line: var(--border-color, #3f3f46);
	--comfyume-tone: #8a94a6;
	position: fixed;
	inset-block-end: 14px;
	inset-inline-start: 50%;
	translate: -50% 0;
	z-index: 900;
	box-sizing: border-box;
	inline-size: max-content;
	min-inline-size: 240px;
	max-inline-size: min(560px, calc(100vw - 32px));
	overflow: hidden;
	border: 1px solid var(--comfyume-line);
	border-radius: 12px;
	background: var(--comfyume-ground);
	color: var(--comfyume-ink);
	box-shadow: 0 4px 16px rgb(0 0 0 / 0.18);
	font: 400 13px/1.4 Inter, system-ui, sans-serif;
}
.comfyume-strip[hidden], .comfyume-strip [hidden] { display: none; }
.comfyume-strip p { margin: 0; overflow-wrap: anywhere; }
.comfyume-strip[data-phase="starting"] { --comfyume-tone: #d9a441; }
.comfyume-strip[data-phase="running"], .comfyume-strip[data-phase="saving"] { --comfyume-tone: #4f8fe6; }
.comfyume-strip[data-phase="done"] { --comfyume-tone: #3fa36c; }
.comfyume-strip[data-phase="failed"] { --comfyume-tone: #d9534f; }
.comfyume-message { padding: 9px 14px; border-block-end: 1px solid var(--comfyume-line); }
.comfyume-message:has(+ .comfyume-status[hidden]) { border-block-end: 0; }
.comfyume-message::before {
	content: "";
	display: inline-block;
	inline-size: 3px;
	block-size: 0.9em;
	margin-inline-end: 9px;
	border-radius: 2px;
	vertical-align: -0.08em;
	background: #4f8fe6;
}
.comfyume-message[data-level="warning"]::before { background: #d9a441; }
.comfyume-message[data-level="error"]::before { background: #d9534f; }
.comfyume-status { display: flex; align-items: flex-start; gap: 10px; padding: 9px 14px; }
.comfyume-words { flex: 1; min-inline-size: 0; }
.comfyume-title { font-weight: 500; }
.comfyume-detail { color: var(--comfyume-quiet); font-variant-numeric: tabular-nums; }
.comfyume-mark {
	flex: none;
	inline-size: 8px;
	block-size: 8px;
	margin-block-start: 5px;
	border-radius: 50%;
	background: var(--comfyume-tone);
}
.comfyume-strip:is([data-phase="starting"], [data-phase="running"], [data-phase="saving"]) .comfyume-mark {
	animation: comfyume-breathe 2.4s ease-in-out infinite;
}
.comfyume-close {
	flex: none;
	margin: -4px -8px -4px 0;
	inline-size: 28px;
	block-size: 28px;
	border: 0;
	border-radius: 6px;
	background: none;
	color: var(--comfyume-quiet);
	font: inherit;
	font-size: 18px;
	line-height: 1;
	cursor: pointer;
}
.comfyume-close:hover, .comfyume-close:focus-visible { color: var(--comfyume-ink); background: var(--comfyume-line); }
.comfyume-close:focus-visible { outline: 2px solid #4f8fe6; outline-offset: -2px; }
.comfyume-bar { block-size: 2px; background: var(--comfyume-line); }
.comfyume-fill {
	block-size: 100%;
	background: var(--comfyume-tone);
	transform: scaleX(0);
	transform-origin: 0 50%;
	transition: transform 300ms linear;
}
:dir(rtl) > .comfyume-strip .comfyume-fill { transform-origin: 100% 50%; }
@keyframes comfyume-breathe { 50% { opacity: 0.35; } }
/* ComfyUI's sidebar at the left, its zoom controls at the lower right. */
@media (max-width: 1100px) {
	.comfyume-strip {
		inset-block-end: 64px;
		inset-inline-start: calc(58px + (100vw - 58px) / 2);
		max-inline-size: min(560px, calc(100vw - 74px));
	}
}
@media (min-width: 2400px) { .comfyume-strip { font-size: 15px; max-inline-size: 680px; } }
@media (prefers-reduced-motion: reduce) {
	.comfyume-strip .comfyume-mark { animation: none !important; }
	.comfyume-fill { transition: none; }
}
`
