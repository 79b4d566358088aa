// The engine's moves. Each is one script: record, order, lease and event change together or not at all.
import { createHash } from "node:crypto"
import { prelude } from "./script-prelude.ts"

export type Script = { name: string; text: string; sha: string }

// A job comes in. Its payload was written before, with a short TTL; here it becomes lasting.
// ARGV: id, user, priority, level, kind, most waiting (0: any number), idempotency key or "", its TTL ms
// Gives: {"created", revision, now, position or -1 in round robin} | {"repeated", id} | {"full"} | {"payload"} when the payload is not there (any more)
const create = script(
	"create",
	`
local id, user, priority, level, kind = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local most, idempotency, idempotencyTtl = tonumber(ARGV[6]), ARGV[7], ARGV[8]
local repeated = idempotency ~= "" and call("GET", key("idempotency:" .. user .. ":" .. idempotency))
if repeated and call("EXISTS", key("job:" .. repeated)) == 1 then
  call("DEL", key("payload:" .. id))
  return { "repeated", repeated }
end
if most > 0 and call("ZCARD", key("waiting")) >= most then
  call("DEL", key("payload:" .. id))
  return { "full" }
end
if call("PERSIST", key("payload:" .. id)) == 0 then return { "payload" } end
local seq = call("HINCRBY", key("config"), "sequence", 1)
call("HSET", key("job:" .. id), "user", user, "priority", priority, "level", level, "kind", kind, "seq", seq,
  "created", text(now), "attempt", 0, "losses", 0, "failures", 0)
call("ZADD", key("all"), seq, id)
call("ZADD", key("user:" .. user .. ":all"), seq, id)
setStatus(id, seq, nil, "pending")
enqueue(id, user, level, seq, now, kind)
if idempotency ~= "" then call("SET", key("idempotency:" .. user .. ":" .. idempotency), id, "PX", idempotencyTtl) end
total("created")
local mode = setting("mode") or "fifo"
local rank = -1
if mode == "priority" then rank = call("ZRANK", key("priority"), id)
elseif mode == "fifo" or level == 0 then rank = call("ZRANK", key("waiting"), id) end
return { "created", publish(id, "job_created"), now, rank }
`,
)

// A worker takes the next job by the mode of this moment.
// ARGV: worker, principal or "", token, lease ms, 1 if the worker heartbeats, largest workflow to hand over here
// Gives: false, or {id, user, attempt, metadata, workflow or false when it is larger than that}
const claim = script(
	"claim",
	`
local worker, holder, token, lease, heartbeat = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local inline = tonumber(ARGV[6])
call("ZADD", key("workers"), now, worker)

-- Who polls for another has no job any more.
local abandoned = call("HGET", key("worker:" .. worker), "job")
if abandoned then
  local job = load(abandoned)
  if job and job.status == "running" and job.worker == worker then lose(job, worker .. " polled for another job") end
  call("HDEL", key("worker:" .. worker), "job")
end
if setting("paused") == "1" then return false end

local capped = call("HLEN", key("caps")) > 0
local function mayRun(user)
  if not capped then return true end
  local cap = call("HGET", key("caps"), user) or call("HGET", key("caps"), "*")
  return not cap or tonumber(call("HGET", key("running"), user) or "0") < tonumber(cap)
end

local function firstOf(index)
  local from = 0
  while true do
    local ids = call("ZRANGE", key(index), from, from + (capped and 49 or 0))
    if #ids == 0 then return nil end
    for _, id in ipairs(ids) do
      local job = call("HMGET", key("job:" .. id), "user", "level")
      if job[2] == "0" or mayRun(job[1]) then return id end
    end
    from = from + #ids
  end
end

local function firstInRing()
  local from = 0
  while true do
    local members = call("ZRANGE", key("ring"), from, from + (capped and 49 or 0))
    if #members == 0 then return nil end
    for _, member in ipairs(members) do
      local user = string.sub(member, 17)
      if mayRun(user) then return call("ZRANGE", key("user:" .. user .. ":waiting"), 0, 0)[1], user end
    end
    from = from + #members
  end
end

while true do
  local mode = setting("mode") or "fifo"
  local id, served
  local instructor = call("ZRANGE", key("waiting"), "(0", "(" .. text(LEVEL), "BYSCORE", "LIMIT", 0, 1)[1]
  if instructor then id = instructor
  elseif mode == "priority" then id = firstOf("priority")
  elseif mode == "round_robin" then id, served = firstInRing()
  else id = firstOf("waiting") end
  if not id then return false end

  local job = load(id)
  local payload = call("HMGET", key("payload:" .. id), "metadata")
  if payload[1] then
    if served then serveRing(served) end
    dequeue(id, job.user, job.kind)
    setStatus(id, job.seq, "pending", "running")
    call("HSET", key("job:" .. id), "started", text(now), "worker", worker, "token", token, "holder", holder,
      "heartbeat", heartbeat)
    local attempt = call("HINCRBY", key("job:" .. id), "attempt", 1)
    call("ZADD", key("leases"), now + lease, id)
    call("HINCRBY", key("running"), job.user, 1)
    call("HSET", key("worker:" .. worker), "job", id)
    call("PEXPIRE", key("worker:" .. worker), 7 * DAY)
    total("claims")
    call("HINCRBY", key("totals"), "waited_ms", now - job.created)
    publish(id, "job_updated")
    local workflow = false
    if call("HSTRLEN", key("payload:" .. id), "workflow") <= inline then
      workflow = call("HGET", key("payload:" .. id), "workflow")
    end
    return { id, job.user, attempt, payload[1], workflow }
  end
  -- Somebody emptied Redis by hand: said as such, and no reason to stop.
  dequeue(id, job.user, job.kind)
  finish(job, "failed", "its workflow is gone from Redis")
  publish(id, "job_updated")
end
`,
)

// A worker is alive, and perhaps still at work.
// ARGV: worker, id or "", token, lease ms, job timeout ms, what it says of itself (JSON) or "", progress (JSON) or ""
// Gives: {"seen"} | {"held", deadline} | {"cancelled"} | {"lost"}
const heartbeat = script(
	"heartbeat",
	`
local worker, id, token, lease, timeout = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
call("ZADD", key("workers"), now, worker)
if ARGV[6] ~= "" then
  call("HSET", key("worker:" .. worker), "about", ARGV[6])
  call("PEXPIRE", key("worker:" .. worker), 7 * DAY)
end
if id == "" then return { "seen" } end
local job = load(id)
if not job then return { "lost" } end
if job.status == "cancelled" then return { "cancelled" } end
if job.status ~= "running" or not holds(job, token, "") or job.worker ~= worker then return { "lost" } end
local deadline = math.min(now + lease, tonumber(job.started) + timeout)
-- One that claimed without promising heartbeats keeps the long lease it was given.
if job.heartbeat == "1" then call("ZADD", key("leases"), deadline, id) end
if ARGV[7] ~= "" then
  call("HSET", key("worker:" .. worker), "progress", ARGV[7])
  call("XADD", key("events"), "MAXLEN", "~", setting("events_kept") or "10000", "*", "type", "comfyume_progress",
    "id", id, "user", job.user, "at", text(now), "progress", ARGV[7])
end
return { "held", deadline }
`,
)

// A worker hands in a job's end.
// ARGV: id, token or "", principal or "", completed | failed, error or "", name of the uploaded result or "",
//   1 if another attempt may help
// Gives: {"done", revision} | {"retried"} | {"ended", status} | {"waiting"} | {"lost"} | {"missing"} | {"upload"}
const settle = script(
	"settle",
	`
local id, token, principal, status, why, upload, again = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local function drop() if upload ~= "" then call("DEL", key("upload:" .. upload)) end end
local job = load(id)
if not job then drop() return { "missing" } end
if job.status == "pending" then drop() return { "waiting" } end
if job.status ~= "running" then drop() return { "ended", job.status } end
if not holds(job, token, principal) then drop() return { "lost" } end
if upload ~= "" and call("EXISTS", key("upload:" .. upload)) == 0 then return { "upload" } end
release(job)
if again == "1" then
  local failures = call("HINCRBY", key("job:" .. id), "failures", 1)
  if failures <= 2 then
    drop()
    total("retries")
    requeue(job)
    publish(id, "job_updated")
    return { "retried" }
  end
  finish(job, "failed", why, "failed " .. failures .. " times: " .. string.sub(why, 1, 1000))
else
  if upload ~= "" then call("RENAME", key("upload:" .. upload), key("result:" .. id)) end
  finish(job, status, why ~= "" and why or nil)
end
if status == "completed" then
  call("LPUSH", key("runs:" .. job.kind), text(now - tonumber(job.started)))
  call("LTRIM", key("runs:" .. job.kind), 0, 19)
  call("PEXPIRE", key("runs:" .. job.kind), 7 * DAY)
  call("HINCRBY", key("totals"), "ran_ms", now - tonumber(job.started))
end
return { "done", publish(id, "job_updated") }
`,
)

// A worker gives a job back untouched: it counts as nobody's fault.
// ARGV: id, token
// Gives: {"released"} | {"lost"}
const giveBack = script(
	"giveBack",
	`
local job = load(ARGV[1])
if not job or job.status ~= "running" or job.token ~= ARGV[2] then return { "lost" } end
release(job)
requeue(job)
publish(job.id, "job_updated")
return { "released" }
`,
)

// The user, or an instructor, wants it no more. A worker that runs it hears of it at its next heartbeat.
// ARGV: id
// Gives: {"cancelled", revision} | {"ended", status} | {"missing"}
const cancel = script(
	"cancel",
	`
local job = load(ARGV[1])
if not job then return { "missing" } end
if job.status == "pending" then dequeue(job.id, job.user, job.kind)
elseif job.status == "running" then release(job)
else return { "ended", job.status } end
finish(job, "cancelled")
return { "cancelled", publish(job.id, "job_deleted") }
`,
)

// ARGV: id, priority, level
// Gives: {"changed", revision} | {"ended", status} (running counts) | {"missing"}
const reprioritise = script(
	"reprioritise",
	`
local job = load(ARGV[1])
if not job then return { "missing" } end
if job.status ~= "pending" then return { "ended", job.status } end
local level = tonumber(ARGV[3])
call("HSET", key("job:" .. job.id), "priority", ARGV[2], "level", level)
if (level == 0) ~= (job.level == 0) then
  dequeue(job.id, job.user, job.kind)
  enqueue(job.id, job.user, level, job.seq, job.created, job.kind)
elseif level > 0 then
  -- The user keeps their turn in the ring.
  call("ZADD", key("priority"), priorityScore(level, job.seq, job.created), job.id)
  call("ZADD", key("user:" .. job.user .. ":waiting"), level * LEVEL + job.seq, job.id)
end
return { "changed", publish(job.id, "job_updated") }
`,
)

// An ended job is tried again, with nothing held against it.
// ARGV: id
// Gives: {"retried", revision} | {"ended", status} when it has not failed | {"payload"} | {"missing"}
const retry = script(
	"retry",
	`
local job = load(ARGV[1])
if not job then return { "missing" } end
if job.status ~= "failed" then return { "ended", job.status } end
if call("PERSIST", key("payload:" .. job.id)) == 0 and call("EXISTS", key("payload:" .. job.id)) == 0 then
  return { "payload" }
end
call("ZREM", key("dead"), job.id)
call("ZREM", key("done"), job.id)
call("DEL", key("result:" .. job.id))
call("HDEL", key("job:" .. job.id), "error", "dead", "completed")
call("HSET", key("job:" .. job.id), "losses", 0, "failures", 0)
call("HINCRBY", key("totals"), "failed", -1)
requeue(job)
return { "retried", publish(job.id, "job_updated") }
`,
)

// ARGV: name, value, name, value, …; a name that begins with "default:" only counts when that default is new: the
//   environment gives defaults, and a changed environment is meant.
// Gives: all settings, flat
const configure = script(
	"configure",
	`
local aging = setting("aging_ms") or "0"
for i = 1, #ARGV, 2 do
  local name, value = ARGV[i], ARGV[i + 1]
  local plain = string.match(name, "^default:(.*)$")
  if plain then
    if setting(name) ~= value then call("HSET", key("config"), name, value, plain, value) end
  else
    call("HSET", key("config"), name, value)
  end
end
-- Aged order has scores of its own.
if (setting("aging_ms") or "0") ~= aging then
  for _, id in ipairs(call("ZRANGE", key("waiting"), 0, -1)) do
    local job = load(id)
    call("ZADD", key("priority"), priorityScore(job.level, job.seq, job.created), id)
  end
end
return call("HGETALL", key("config"))
`,
)

// ARGV: caps | weights, user or "*", number or "" to take it away
// Gives: all of them, flat
const setShare = script(
	"setShare",
	`
if ARGV[3] == "" then call("HDEL", key(ARGV[1]), ARGV[2]) else call("HSET", key(ARGV[1]), ARGV[2], ARGV[3]) end
return call("HGETALL", key(ARGV[1]))
`,
)

// Leases that ran out by Redis' clock.
// ARGV: job timeout ms, most at a time
// Gives: how many
const reap = script(
	"reap",
	`
local ids = call("ZRANGE", key("leases"), "-inf", now, "BYSCORE", "LIMIT", 0, ARGV[2])
for _, id in ipairs(ids) do
  local job = load(id)
  if not job or job.status ~= "running" then
    call("ZREM", key("leases"), id)
  elseif job.heartbeat == "1" and now >= tonumber(job.started) + tonumber(ARGV[1]) then
    -- Its worker is alive and the job is not: another attempt would take as long.
    release(job)
    finish(job, "failed", "it ran longer than " .. math.floor(tonumber(ARGV[1]) / 1000) .. " s")
    publish(id, "job_updated")
  else
    lose(job, (job.worker or "its worker") .. " was not heard of any more")
  end
end
return #ids
`,
)

// What has been kept long enough goes.
// ARGV: records' ms, dead letters' ms, most at a time, workers' ms
// Gives: how many records went
const retain = script(
	"retain",
	`
local gone = 0
local function forget(index, ms)
  for _, id in ipairs(call("ZRANGE", key(index), "-inf", now - tonumber(ms), "BYSCORE", "LIMIT", 0, ARGV[3])) do
    local job = load(id)
    if job then
      call("ZREM", key("status:" .. job.status), id)
      call("ZREM", key("user:" .. job.user .. ":all"), id)
    end
    call("ZREM", key("all"), id)
    call("ZREM", key(index), id)
    call("DEL", key("job:" .. id), key("payload:" .. id), key("result:" .. id))
    gone = gone + 1
  end
end
forget("done", ARGV[1])
forget("dead", ARGV[2])
call("ZREMRANGEBYSCORE", key("workers"), "-inf", now - tonumber(ARGV[4]))
-- Those whose time has come need no note: they would enter at the present anyway.
local present = tonumber(setting("ring_time") or "0")
local notes = call("HSCAN", key("ring:time"), setting("ring_cursor") or "0", "COUNT", 200)
call("HSET", key("config"), "ring_cursor", notes[1])
for i = 1, #notes[2], 2 do
  if tonumber(notes[2][i + 1]) <= present then call("HDEL", key("ring:time"), notes[2][i]) end
end
return gone
`,
)

// Records with what their positions are computed from, all of one moment.
// ARGV: 1 to have results up to a size, that size in bytes, then ids; or "list", user or "", status or "", most
// Gives: {mode, virtual time, level 0 waiting, ring rows {user, time, stride, waiting}, records {flat, rank, result}}
const read = script(
	"read",
	`
local most = tonumber(ARGV[2])
local ids = {}
if ARGV[3] == "list" then
  local user, status, limit = ARGV[4], ARGV[5], tonumber(ARGV[6])
  local index = user ~= "" and "user:" .. user .. ":all" or status ~= "" and "status:" .. status or "all"
  local from = 0
  while #ids < limit do
    local page = call("ZRANGE", key(index), from, from + 199, "REV")
    if #page == 0 then break end
    for _, id in ipairs(page) do
      if #ids < limit and (status == "" or user == "" or call("HGET", key("job:" .. id), "status") == status) then
        ids[#ids + 1] = id
      end
    end
    from = from + #page
  end
else
  for i = 3, #ARGV do ids[#ids + 1] = ARGV[i] end
end
local mode = setting("mode") or "fifo"
local first = call("ZCOUNT", key("waiting"), "(0", "(" .. text(LEVEL))
local records, rows = {}, {}
local ring = false
for _, id in ipairs(ids) do
  local flat = call("HGETALL", key("job:" .. id))
  if #flat > 0 then
    local job = load(id)
    local rank, result = false, false
    if job.status == "pending" then
      if mode == "priority" then rank = call("ZRANK", key("priority"), id)
      elseif mode == "fifo" or job.level == 0 then rank = call("ZRANK", key("waiting"), id)
      else
        rank = call("ZRANK", key("user:" .. job.user .. ":waiting"), id)
        ring = true
      end
    elseif ARGV[1] == "1" and call("STRLEN", key("result:" .. id)) <= most then
      result = call("GET", key("result:" .. id))
    end
    records[#records + 1] = { id, flat, rank, result }
  end
end
if ring then
  local members = call("ZRANGE", key("ring"), 0, -1, "WITHSCORES")
  for i = 1, #members, 2 do
    local user = string.sub(members[i], 17)
    local weight = tonumber(call("HGET", key("weights"), user) or "1")
    rows[#rows + 1] = { user, members[i + 1], math.floor(STRIDE / weight + 0.5),
      call("ZCARD", key("user:" .. user .. ":waiting")) }
  end
end
return { mode, setting("ring_time") or "0", first, rows, records }
`,
)

// What the counters, the estimate and the metrics are made of.
// ARGV: a worker counts as active so many ms after its last sign of life
// Gives: {now, config, totals, waiting, running rows {kind, started, worker}, workers rows {name, seen, flat},
//   kinds rows {kind, waiting, run times}, oldest waiting's created or false, dead letters, active workers}
const status = script(
	"status",
	`
local running, workers, kinds = {}, {}, {}
local active, activeCount, wanted = {}, 0, {}
for _, id in ipairs(call("ZRANGE", key("status:running"), 0, -1)) do
  local job = load(id)
  running[#running + 1] = { job.kind, job.started, job.worker }
  wanted[job.kind] = wanted[job.kind] or 0
  if not active[job.worker] then active[job.worker] = true activeCount = activeCount + 1 end
end
local seen = call("ZRANGE", key("workers"), 0, -1, "WITHSCORES")
for i = 1, #seen, 2 do
  workers[#workers + 1] = { seen[i], seen[i + 1], call("HGETALL", key("worker:" .. seen[i])) }
  if not active[seen[i]] and tonumber(seen[i + 1]) >= now - tonumber(ARGV[1]) then
    active[seen[i]] = true
    activeCount = activeCount + 1
  end
end
local waitingKinds = call("HGETALL", key("kinds"))
for i = 1, #waitingKinds, 2 do wanted[waitingKinds[i]] = tonumber(waitingKinds[i + 1]) end
for kind, count in pairs(wanted) do
  kinds[#kinds + 1] = { kind, count, call("LRANGE", key("runs:" .. kind), 0, -1) }
end
local oldest = call("ZRANGE", key("waiting"), text(LEVEL), "+inf", "BYSCORE", "LIMIT", 0, 1)[1]
  or call("ZRANGE", key("waiting"), 0, 0)[1]
return { text(now), call("HGETALL", key("config")), call("HGETALL", key("totals")), call("ZCARD", key("waiting")),
  running, workers, kinds, oldest and call("HGET", key("job:" .. oldest), "created") or false,
  call("ZCARD", key("dead")), activeCount, #seen / 2 }
`,
)

// Dead letters, the newest first.
// ARGV: most
// Gives: ids
const dead = script("dead", `return call("ZRANGE", key("dead"), 0, tonumber(ARGV[1]) - 1, "REV")`)

export const scripts = {
	create,
	claim,
	heartbeat,
	settle,
	giveBack,
	cancel,
	reprioritise,
	retry,
	configure,
	setShare,
	reap,
	retain,
	read,
	status,
	dead,
}

function script(name: string, body: string): Script {
	const text = prelude + body
	return { name, text, sha: createHash("sha1").update(text).digest("hex") }
}
