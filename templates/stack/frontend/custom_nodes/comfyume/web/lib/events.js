// The queue manager's events over WebSocket: a lost connection comes back by itself and misses nothing.

const longestWaitMs = 10_000
// A connection that says nothing at all may be dead without knowing: it is asked.
const askEveryMs = 25_000

/**
 * Follows the events of a user until the page is left.
 * @param user whose: a browser that an instructor signed in with too would be told of everybody's jobs
 * @param after the id of the last event that is known, or undefined for those from now on
 * @param on `event` for each event, `resync` when some were missed for good, `link` with true or false
 */
export function followEvents(user, after, on) {
	let last = after
	let waitMs = 250

	function connect() {
		const address = new URL("/ws", location.href)
		address.protocol = address.protocol.replace("http", "ws")
		address.searchParams.set("user_id", user)
		if (last !== undefined) address.searchParams.set("after", last)
		const socket = new WebSocket(address)
		let heardAt = Date.now()
		const asking = setInterval(() => {
			if (Date.now() - heardAt > 2 * askEveryMs) socket.close()
			else if (socket.readyState === WebSocket.OPEN) socket.send("there?")
		}, askEveryMs)

		socket.onopen = () => {
			waitMs = 250
			on.link(true)
		}
		socket.onmessage = ({ data }) => {
			heardAt = Date.now()
			if (typeof data !== "string" || data.startsWith("pong")) return
			const event = JSON.parse(data)
			if (event.id !== undefined) last = event.id
			if (event.type === "resync") on.resync()
			else on.event(event)
		}
		socket.onclose = () => {
			clearInterval(asking)
			on.link(false)
			// Not all pages of a workshop in the same moment.
			setTimeout(connect, waitMs * (0.5 + Math.random() / 2))
			waitMs = Math.min(waitMs * 2, longestWaitMs)
		}
	}

	connect()
	return { lastId: () => last }
}
