// The engine's scripts for jobs that are handed to an endpoint rather than fetched: taking over from a queue manager
// that went away, files of a job delivered exactly once, and what is added to a result afterwards.
import { script } from "./script-prelude.ts"

// A job whose lease ran out while an endpoint has it is not lost: another queue manager goes on observing it.
// ARGV: worker, token, lease ms, job timeout ms, most times, then ids that the asker has itself
// Gives: false, or {id, user, attempt, created, endpoint}
export const adopt = script(
	"adopt",
	`
local own = {}
for i = 6, #ARGV do own[ARGV[i]] = true end
for _, id in ipairs(call("ZRANGE", key("leases"), "-inf", now, "BYSCORE", "LIMIT", 0, 100)) do
  local job = load(id)
  if job and job.status == "running" and job.endpoint and not own[id]
    and now < tonumber(job.started) + tonumber(ARGV[4])
    and tonumber(job.adoptions or "0") < tonumber(ARGV[5]) and call("EXISTS", key("payload:" .. id)) == 1 then
    -- One that was handed over in good order is nobody's fault.
    if job.handed == "1" then call("HDEL", key("job:" .. id), "handed")
    else call("HINCRBY", key("job:" .. id), "adoptions", 1) end
    if job.worker and call("HGET", key("worker:" .. job.worker), "job") == id then
      call("HDEL", key("worker:" .. job.worker), "job")
    end
    call("HSET", key("job:" .. id), "token", ARGV[2], "worker", ARGV[1])
    call("ZADD", key("leases"), now + tonumber(ARGV[3]), id)
    call("ZADD", key("workers"), now, ARGV[1])
    call("HSET", key("worker:" .. ARGV[1]), "job", id)
    call("PEXPIRE", key("worker:" .. ARGV[1]), 7 * DAY)
    return { id, job.user, tonumber(job.attempt), text(job.created), job.endpoint }
  end
end
return false
`,
)

// A queue manager that stops lets go of a job that an endpoint has: whoever comes next goes on at once.
// ARGV: id, token
// Gives: {"released"} | {"lost"}
export const handOver = script(
	"handOver",
	`
local job = load(ARGV[1])
if not job or job.status ~= "running" or job.token ~= ARGV[2] then return { "lost" } end
call("ZADD", key("leases"), now, ARGV[1])
call("HSET", key("job:" .. ARGV[1]), "handed", "1")
return { "released" }
`,
)

// Whether the asker has the job, before anything is done on its behalf.
// ARGV: id, token or "", principal or "", ms for which its result may be on its way to the user, 0: it is only asked
// Gives: {"held", user, attempt} | {"ended", status} | {"waiting"} | {"lost"} | {"missing"}
export const holder = script(
	"holder",
	`
local job = load(ARGV[1])
if not job then return { "missing" } end
if job.status == "pending" then return { "waiting" } end
if job.status ~= "running" then return { "ended", job.status } end
if not holds(job, ARGV[2], ARGV[3]) then return { "lost" } end
if tonumber(ARGV[4]) > 0 then
  local untilMs = text(now + tonumber(ARGV[4]))
  call("HSET", key("job:" .. job.id), "heard", "1", "delivering", untilMs)
  call("ZADD", key("leases"), "XX", "GT", untilMs, job.id)
end
return { "held", job.user, tonumber(job.attempt) }
`,
)

// A job that is done and whose late files nobody waits for (any more).
// ARGV: lease ms
// Gives: false, or {id, user, attempt, created}
export const takeLate = script(
	"takeLate",
	`
for _, id in ipairs(call("ZRANGE", key("late"), "-inf", now, "BYSCORE", "LIMIT", 0, 10)) do
  local job = load(id)
  if job and job.status == "completed" and call("EXISTS", key("payload:" .. id)) == 1 then
    call("ZADD", key("late"), now + tonumber(ARGV[1]), id)
    return { id, job.user, tonumber(job.attempt), text(job.created) }
  end
  call("ZREM", key("late"), id)
end
return false
`,
)

// ARGV: id, lease ms or "" when nothing more is waited for
export const keepLate = script(
	"keepLate",
	`
if ARGV[2] == "" then return call("ZREM", key("late"), ARGV[1]) end
return call("ZADD", key("late"), "XX", now + tonumber(ARGV[2]), ARGV[1])
`,
)

// A result is replaced by one that holds more, unless it is another one by now.
// ARGV: id, sha1 of the present result, name of the uploaded one
// Gives: {"done", revision} | {"changed"}
export const amend = script(
	"amend",
	`
local present = call("GET", key("result:" .. ARGV[1]))
if not present or redis.sha1hex(present) ~= ARGV[2] or call("EXISTS", key("upload:" .. ARGV[3])) == 0 then
  call("DEL", key("upload:" .. ARGV[3]))
  return { "changed" }
end
local kept = call("PTTL", key("result:" .. ARGV[1]))
call("RENAME", key("upload:" .. ARGV[3]), key("result:" .. ARGV[1]))
if kept > 0 then call("PEXPIRE", key("result:" .. ARGV[1]), kept) else call("PERSIST", key("result:" .. ARGV[1])) end
return { "done", publish(ARGV[1], "job_updated") }
`,
)

// A file takes a name in its user's directory: a file holds at most one, and a name belongs to at most one file.
// ARGV: <job>:<attempt>:<file>, user, node, filename, the present name that is given up or "", kept for ms
// Gives: {"taken"} | {state, user, node, filename}
export const reserveName = script(
	"reserveName",
	`
local file, user, node, filename, instead, kept = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local record = key("delivery:" .. file)
local present = call("HMGET", record, "state", "user", "node", "filename")
if present[1] and (present[1] == "delivered" or present[4] ~= instead) then return present end
local owner = call("GET", key("name:" .. user .. ":" .. filename))
if owner and owner ~= file then return { "taken" } end
if present[1] then call("DEL", key("name:" .. present[2] .. ":" .. present[4])) end
call("SET", key("name:" .. user .. ":" .. filename), file, "PX", kept)
call("HSET", record, "state", "reserved", "user", user, "node", node, "filename", filename)
call("PEXPIRE", record, kept)
return { "reserved", user, node, filename }
`,
)

// A file is in its user's directory: said once.
// ARGV: <job>:<attempt>:<file>, job, size in bytes, sha256, kept for ms
// Gives: {"first"} | {"already"} | {"unreserved"}
export const completeDelivery = script(
	"completeDelivery",
	`
local record = key("delivery:" .. ARGV[1])
local present = call("HMGET", record, "state", "user", "node", "filename")
if not present[1] then return { "unreserved" } end
if present[1] == "delivered" then return { "already" } end
call("HSET", record, "state", "delivered", "size", ARGV[3], "digest", ARGV[4])
call("PEXPIRE", record, ARGV[5])
call("PEXPIRE", key("name:" .. present[2] .. ":" .. present[4]), ARGV[5])
total("files")
call("XADD", key("events"), "MAXLEN", "~", setting("events_kept") or "10000", "*", "type", "output_delivered",
  "id", ARGV[2], "user", present[2], "at", text(now), "node", present[3], "filename", present[4], "size", ARGV[3])
return { "first" }
`,
)
