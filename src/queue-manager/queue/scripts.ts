// The engine's moves. Each is one script: record, order, lease and event change together or not at all.
import { script } from "./script-prelude.ts"
import {
	adopt,
	amend,
	completeDelivery,
	handOver,
	holder,
	keepLate,
	reserveName,
	takeLate,
} from "./scripts-push.ts"
import { configure, dead, read, reap, retain, setShare, status } from "./scripts-upkeep.ts"

// The answer to a claim may be lost on its way: a worker that never spoke of its job and polls again so soon is given
// another, or the same once more, and nothing is counted. So often for one job; then it may be what kills its worker.
const unheardMs = 60_000
const mostUnheard = 3

// A job comes in. Its payload was written before, with a short TTL; here it becomes lasting.
// ARGV: id, user, priority, level, kind, most waiting (0: any number), idempotency key or "", its TTL ms, Redis' time in
//   ms after which the asker has given up, most of this user waiting (0: any number; level 0 aside)
// Gives: {"created", revision, now, position or -1 in round robin} | {"repeated", id} | {"full"} | {"crowded"} | {"late"} |
//   {"payload"} when the payload is not there (any more)
const create = script(
	"create",
	`
local id, user, priority, level, kind = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local most, idempotency, idempotencyTtl = tonumber(ARGV[6]), ARGV[7], ARGV[8]
if now > tonumber(ARGV[9]) then return { "late" } end
local repeated = idempotency ~= "" and call("GET", key("idempotency:" .. user .. ":" .. idempotency))
if repeated and call("EXISTS", key("job:" .. repeated)) == 1 then
  call("DEL", key("payload:" .. id))
  return { "repeated", repeated }
end
if most > 0 and call("ZCARD", key("waiting")) >= most then
  call("DEL", key("payload:" .. id))
  return { "full" }
end
if tonumber(ARGV[10]) > 0 and call("ZCARD", key("user:" .. user .. ":waiting")) >= tonumber(ARGV[10]) then
  call("DEL", key("payload:" .. id))
  return { "crowded" }
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
return { "created", publish(id, "job_created"), text(now), rank }
`,
)

// A submit was answered with an error, and whether its job was made is unknown: it was not.
// ARGV: id, user, idempotency key or ""
// Gives: {"missing"} | {"withdrawn"} without a trace | {"cancelled"} when a worker had it by then | {"ended"}
const withdraw = script(
	"withdraw",
	`
local id, promise = ARGV[1], key("idempotency:" .. ARGV[2] .. ":" .. ARGV[3])
if ARGV[3] ~= "" and call("GET", promise) == id then call("DEL", promise) end
local job = load(id)
if not job then
  call("DEL", key("payload:" .. id))
  return { "missing" }
end
if job.status == "running" then release(job)
elseif job.status == "pending" then dequeue(id, job.user, job.kind)
else return { "ended" } end
if job.status == "running" or tonumber(job.attempt) > 0 then
  finish(job, "cancelled", "its submit could not be answered")
  publish(id, "job_deleted")
  return { "cancelled" }
end
setStatus(id, job.seq, "pending", "cancelled")
publish(id, "job_deleted")
forget(id, job)
call("HINCRBY", key("totals"), "created", -1)
return { "withdrawn" }
`,
)

// A worker takes the next job by the mode of this moment.
// ARGV: worker, principal or "", token, lease ms, 1 if the worker heartbeats, largest workflow to hand over here,
//   endpoint or "" when a worker fetches it, how many jobs that endpoint may have, Redis' time in ms after which the
//   asker has given up, token of a claim whose answer the worker is known to have read, or ""
// Gives: false, {"late"}, or {id, user, attempt, metadata, workflow or false when it is larger than that, created}
const claim = script(
	"claim",
	`
local worker, holder, token, lease, heartbeat = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local inline, endpoint = tonumber(ARGV[6]), ARGV[7]
if now > tonumber(ARGV[9]) then return { "late" } end
call("ZADD", key("workers"), now, worker)

-- Who polls for another has no job any more.
local abandoned = call("HGET", key("worker:" .. worker), "job")
-- Slots of an endpoint have the same names in every queue manager: what one of them asks for says nothing of the others.
if abandoned and endpoint == "" then
  local job = load(abandoned)
  local isRunning = job and job.status == "running" and job.worker == worker
  -- Its name is the worker's own word: somebody else who gives it takes nothing away.
  local isOwn = not isRunning or (job.holder or "") == "" or job.holder == holder
  if isRunning and isOwn then
    if tonumber(job.delivering or "0") > now then
      -- It has handed its result in, and lost its patience: the end is recorded by whoever brings the files. Should
      -- that one die, the job doesn't wait for the worker's lease.
      call("ZADD", key("leases"), "XX", "LT", job.delivering, job.id)
    elseif not job.heard and job.token ~= ARGV[10] and now - tonumber(job.started) <= ${unheardMs}
      and tonumber(job.unheard or "0") < ${mostUnheard} then
      call("HINCRBY", key("job:" .. job.id), "unheard", 1)
      total("unheard")
      giveUp(job)
    else lose(job, worker .. " polled for another job") end
  end
  if isOwn then call("HDEL", key("worker:" .. worker), "job") end
end
if setting("paused") == "1" then return false end
if endpoint ~= "" and call("SCARD", key("endpoint:" .. endpoint)) >= tonumber(ARGV[8]) then return false end

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
    if endpoint ~= "" then
      call("HSET", key("job:" .. id), "endpoint", endpoint)
      call("SADD", key("endpoint:" .. endpoint), id)
    end
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
    return { id, job.user, attempt, payload[1], workflow, text(job.created) }
  end
  -- Somebody emptied Redis by hand: said as such, and no reason to stop.
  dequeue(id, job.user, job.kind)
  finish(job, "failed", "its workflow is gone from Redis")
  publish(id, "job_updated")
end
`,
)

// A claim's answer didn't come, or could not be passed on: nobody has the job.
// ARGV: worker, token
// Gives: {"released"} | {"lost"}
const unclaim = script(
	"unclaim",
	`
local id = call("HGET", key("worker:" .. ARGV[1]), "job")
local job = id and load(id)
if not job or job.status ~= "running" or job.token ~= ARGV[2] then return { "lost" } end
giveUp(job)
return { "released" }
`,
)

// A worker is alive, and perhaps still at work.
// ARGV: worker, id or "", token, lease ms, job timeout ms, what it says of itself (JSON) or "", progress (JSON) or "",
//   principal or ""
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
if job.status ~= "running" or not holds(job, token, ARGV[8]) or job.worker ~= worker then return { "lost" } end
local deadline = math.min(now + lease, tonumber(job.started) + timeout)
-- It speaks of the job: so it was told of it.
if not job.heard then call("HSET", key("job:" .. id), "heard", "1") end
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
// Gives: {"done", revision} | {"retried"} | {"repeated"} when this holder said the same before | {"ended", status} |
//   {"waiting"} | {"lost"} | {"missing"} | {"upload"}
const settle = script(
	"settle",
	`
local id, token, principal, status, why, upload, again = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local function drop() if upload ~= "" then call("DEL", key("upload:" .. upload)) end end
local job = load(id)
if not job then drop() return { "missing" } end
if token ~= "" and job.told == token .. ":" .. status then drop() return { "repeated" } end
if job.status == "pending" then drop() return { "waiting" } end
if job.status ~= "running" then drop() return { "ended", job.status } end
if not holds(job, token, principal) then drop() return { "lost" } end
if upload ~= "" and call("EXISTS", key("upload:" .. upload)) == 0 then return { "upload" } end
release(job)
-- The answer to this may be lost, and the worker says it again.
if token ~= "" then call("HSET", key("job:" .. id), "told", token .. ":" .. status) end
if again == "1" then
  local failures = call("HINCRBY", key("job:" .. id), "failures", 1)
  if failures <= 2 then
    drop()
    total("retries")
    requeue(job)
    publish(id, "job_updated")
    return { "retried" }
  end
  if upload ~= "" then call("RENAME", key("upload:" .. upload), key("result:" .. id)) end
  finish(job, "failed", why, "failed " .. failures .. " times: " .. string.sub(why, 1, 1000))
else
  if upload ~= "" then call("RENAME", key("upload:" .. upload), key("result:" .. id)) end
  finish(job, status, why ~= "" and why or nil)
end
if status == "completed" then
  if job.endpoint then call("ZADD", key("late"), now, id) end
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
giveUp(job)
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
call("HSET", key("job:" .. job.id), "losses", 0, "failures", 0, "unheard", 0)
call("HINCRBY", key("totals"), "failed", -1)
requeue(job)
return { "retried", publish(job.id, "job_updated") }
`,
)

export const scripts = {
	create,
	withdraw,
	claim,
	unclaim,
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
	adopt,
	handOver,
	holder,
	takeLate,
	keepLate,
	amend,
	reserveName,
	completeDelivery,
}
