// The engine's scripts that look after the queue as a whole: settings, leases that ran out, retention, and reading.
import { script } from "./script-prelude.ts"

// ARGV: name, value, name, value, …; a name that begins with "default:" only counts when that default is new: the
//   environment gives defaults, and a changed environment is meant.
// Gives: all settings, flat
export const configure = script(
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
export const setShare = script(
	"setShare",
	`
if ARGV[3] == "" then call("HDEL", key(ARGV[1]), ARGV[2]) else call("HSET", key(ARGV[1]), ARGV[2], ARGV[3]) end
return call("HGETALL", key(ARGV[1]))
`,
)

// Leases that ran out by Redis' clock.
// ARGV: job timeout ms, most at a time, ms for which a job that an endpoint has may yet be taken over
// Gives: how many
export const reap = script(
	"reap",
	`
local reaped = 0
for _, id in ipairs(call("ZRANGE", key("leases"), "-inf", now, "BYSCORE")) do
  if reaped >= tonumber(ARGV[2]) then break end
  local job = load(id)
  reaped = reaped + 1
  local isLate = job and job.started and now >= tonumber(job.started) + tonumber(ARGV[1])
  if job and job.status == "running" and job.endpoint and not isLate
    and now < tonumber(call("ZSCORE", key("leases"), id)) + tonumber(ARGV[3]) then
    reaped = reaped - 1
  elseif not job or job.status ~= "running" then
    call("ZREM", key("leases"), id)
  elseif job.heartbeat == "1" and isLate then
    -- Its worker is alive and the job is not: another attempt would take as long.
    release(job)
    finish(job, "failed", "it ran longer than " .. math.floor(tonumber(ARGV[1]) / 1000) .. " s")
    publish(id, "job_updated")
  else
    lose(job, (job.worker or "its worker") .. " was not heard of any more")
  end
end
return reaped
`,
)

// What has been kept long enough goes.
// ARGV: records' ms, dead letters' ms, most at a time, workers' ms
// Gives: how many records went
export const retain = script(
	"retain",
	`
local gone = 0
local function forgetOld(index, ms)
  for _, id in ipairs(call("ZRANGE", key(index), "-inf", now - tonumber(ms), "BYSCORE", "LIMIT", 0, ARGV[3])) do
    forget(id, load(id))
    call("ZREM", key(index), id)
    gone = gone + 1
  end
end
forgetOld("done", ARGV[1])
forgetOld("dead", ARGV[2])
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
// ARGV: 1 to have results up to a size, that size in bytes (and 8 MiB together), then ids; or "list", user or "", status or "", most
// Gives: {mode, virtual time, level 0 waiting, ring rows {user, time, stride, waiting}, records {id, flat, rank, result, size of a
//   result that was left out for its size}}
export const read = script(
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
local left = 8388608
local ring = false
for _, id in ipairs(ids) do
  local flat = call("HGETALL", key("job:" .. id))
  if #flat > 0 then
    local job = load(id)
    local rank, result, size = false, false, 0
    if job.status == "pending" then
      if mode == "priority" then rank = call("ZRANK", key("priority"), id)
      elseif mode == "fifo" or job.level == 0 then rank = call("ZRANK", key("waiting"), id)
      else
        rank = call("ZRANK", key("user:" .. job.user .. ":waiting"), id)
        ring = true
      end
    elseif ARGV[1] == "1" then
      size = call("STRLEN", key("result:" .. id))
      if size <= most and size <= left then
        result = call("GET", key("result:" .. id))
        left = left - size
        size = 0
      end
    end
    records[#records + 1] = { id, flat, rank, result, size }
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
export const status = script(
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
export const dead = script("dead", `return call("ZRANGE", key("dead"), 0, tonumber(ARGV[1]) - 1, "REV")`)
