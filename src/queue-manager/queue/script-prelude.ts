// What every script of the engine begins with: the keys, the clock, and the moves that several scripts share.
// Redis runs a script alone, from its first to its last command, so what stands here is never seen half done.
import { createHash } from "node:crypto"

/** A script, and the digest that Redis knows it by. */
export type Script = { name: string; text: string; sha: string }

/** Makes a script of its body. */
export function script(name: string, body: string): Script {
	const text = prelude + body
	return { name, text, sha: createHash("sha1").update(text).digest("hex") }
}

/**
 * Keys, all below `KEYS[1]`, which is `cq:{<workshop>}`: one hash tag, so that a cluster keeps a workshop in one slot.
 *
 * | key | holds |
 * |---|---|
 * | `job:<id>` | hash: the record, without its workflow |
 * | `payload:<id>` | hash: `workflow`, `metadata`, as the client sent them. Written before its record, with a short TTL |
 * | `result:<id>` | string: what the worker handed in |
 * | `waiting` | zset id: order of arrival; level 0 before all others |
 * | `priority` | zset id: order of levels, then arrival (or aged) |
 * | `user:<u>:waiting` | zset id: one user's order, without level 0 |
 * | `ring`, `ring:member`, `ring:time` | zset `<turn><user>` by virtual time; its members by user; virtual time by user |
 * | `leases` | zset id by the deadline of its lease, in ms of Redis' clock |
 * | `status:<s>`, `all`, `user:<u>:all` | zsets id by sequence: lists and counters |
 * | `done`, `dead` | zsets id by the time it ended |
 * | `running` | hash user: jobs being run |
 * | `kinds`, `runs:<kind>` | hash kind: jobs waiting; list: the last run times in ms |
 * | `workers`, `worker:<w>` | zset by last sign of life; hash: what it said of itself |
 * | `config`, `caps`, `weights`, `totals` | hashes |
 * | `idempotency:<user>:<key>` | string id |
 * | `endpoint:<e>` | set id: what an endpoint has at this moment, counted over all queue managers |
 * | `late` | zset id by when somebody else may wait for its late files |
 * | `delivery:<job>:<attempt>:<file>` | hash: a file's name in its user's directory, and whether it is there |
 * | `name:<user>:<filename>` | string: the file that has this name |
 * | `events` | stream, of bounded length |
 */
const prelude = `
local base = KEYS[1]
local call = redis.call
local function key(name) return base .. ":" .. name end
local clock = call("TIME")
local now = tonumber(clock[1]) * 1000 + math.floor(tonumber(clock[2]) / 1000)

-- Sequences stay below 2^45 and levels below 4: their sum is exact in a double.
local LEVEL = 35184372088832
-- One turn of a user of weight 1, in virtual time; whole numbers, so that sums are exact.
local STRIDE = 1000000

local function text(number) return string.format("%.0f", number) end

local function setting(name) return call("HGET", key("config"), name) end

local function priorityScore(level, seq, created)
  if level == 0 then return seq end
  local aging = tonumber(setting("aging_ms") or "0")
  if aging <= 0 then return level * LEVEL + seq end
  return LEVEL + (created - 1700000000000) + (level - 1) * aging
end

local function enterRing(user)
  if call("HEXISTS", key("ring:member"), user) == 1 then return end
  local time = math.max(tonumber(call("HGET", key("ring:time"), user) or "0"), tonumber(setting("ring_time") or "0"))
  local member = string.format("%016.0f", call("HINCRBY", key("config"), "ring_turn", 1)) .. user
  call("ZADD", key("ring"), time, member)
  call("HSET", key("ring:member"), user, member)
end

local function leaveRing(user)
  local member = call("HGET", key("ring:member"), user)
  if not member then return end
  call("ZREM", key("ring"), member)
  call("HDEL", key("ring:member"), user)
end

-- The user is served: time passes for them, and for all who come after.
local function serveRing(user)
  local time = tonumber(call("ZSCORE", key("ring"), call("HGET", key("ring:member"), user)))
  local served = math.max(time, tonumber(setting("ring_time") or "0"))
  local weight = tonumber(call("HGET", key("weights"), user) or "1")
  call("HSET", key("config"), "ring_time", text(served))
  call("HSET", key("ring:time"), user, text(served + math.floor(STRIDE / weight + 0.5)))
  leaveRing(user)
  enterRing(user)
end

local function setStatus(id, seq, from, to)
  if from then call("ZREM", key("status:" .. from), id) end
  call("ZADD", key("status:" .. to), seq, id)
  call("HSET", key("job:" .. id), "status", to)
end

-- Into all orders at once, so that a change of the mode needs no moving.
local function enqueue(id, user, level, seq, created, kind)
  call("ZADD", key("waiting"), (level == 0 and 0 or LEVEL) + seq, id)
  call("ZADD", key("priority"), priorityScore(level, seq, created), id)
  call("HINCRBY", key("kinds"), kind, 1)
  if level > 0 then
    call("ZADD", key("user:" .. user .. ":waiting"), level * LEVEL + seq, id)
    enterRing(user)
  end
end

local function dequeue(id, user, kind)
  call("ZREM", key("waiting"), id)
  call("ZREM", key("priority"), id)
  if call("HINCRBY", key("kinds"), kind, -1) <= 0 then call("HDEL", key("kinds"), kind) end
  if call("ZREM", key("user:" .. user .. ":waiting"), id) == 1
    and call("EXISTS", key("user:" .. user .. ":waiting")) == 0 then leaveRing(user) end
end

local function load(id)
  local flat = call("HGETALL", key("job:" .. id))
  if #flat == 0 then return nil end
  local job = { id = id }
  for i = 1, #flat, 2 do job[flat[i]] = flat[i + 1] end
  job.seq = tonumber(job.seq)
  job.level = tonumber(job.level)
  job.created = tonumber(job.created)
  return job
end

-- No trace of it stays, but what its events said.
local function forget(id, job)
  if job then
    for _, status in ipairs({ job.status, "cancelled" }) do call("ZREM", key("status:" .. status), id) end
    call("ZREM", key("user:" .. job.user .. ":all"), id)
  end
  call("ZREM", key("all"), id)
  call("DEL", key("job:" .. id), key("payload:" .. id), key("result:" .. id))
end

-- The event carries the record as this script leaves it; never the workflow, the result or the lease's token.
local function publish(id, kind)
  local revision = call("HINCRBY", key("job:" .. id), "revision", 1)
  local flat = call("HGETALL", key("job:" .. id))
  local event = { "type", kind, "id", id, "at", text(now) }
  for i = 1, #flat, 2 do
    if flat[i] ~= "token" and flat[i] ~= "holder" and flat[i] ~= "told" then
      event[#event + 1] = flat[i]
      event[#event + 1] = flat[i + 1]
    end
  end
  call("XADD", key("events"), "MAXLEN", "~", setting("events_kept") or "10000", "*", unpack(event))
  return revision
end

local function total(name) call("HINCRBY", key("totals"), name, 1) end

-- The worker no longer has it, whatever becomes of the job.
local function release(job)
  call("ZREM", key("leases"), job.id)
  if call("HINCRBY", key("running"), job.user, -1) <= 0 then call("HDEL", key("running"), job.user) end
  if job.endpoint then call("SREM", key("endpoint:" .. job.endpoint), job.id) end
  call("HDEL", key("job:" .. job.id), "token", "holder", "endpoint", "adoptions", "handed", "heard", "delivering")
  if job.worker and call("HGET", key("worker:" .. job.worker), "job") == job.id then
    call("HDEL", key("worker:" .. job.worker), "job")
  end
end

local DAY = 86400000

-- Its one terminal state. \`dead\` is a reason for the list of dead letters, or nil.
local function finish(job, status, why, dead)
  local record = key("job:" .. job.id)
  setStatus(job.id, job.seq, job.status, status)
  call("HSET", record, "completed", text(now))
  if why then call("HSET", record, "error", why) end
  local kept = tonumber(setting(dead and "dead_ms" or "payload_ms") or text(dead and 30 * DAY or DAY))
  if dead then
    call("HSET", record, "dead", dead)
    call("ZADD", key("dead"), now, job.id)
    total("dead")
  else
    call("ZADD", key("done"), now, job.id)
  end
  call("PEXPIRE", key("payload:" .. job.id), kept)
  call("PEXPIRE", key("result:" .. job.id), kept)
  total(status)
end

-- Back to where it stood: its sequence is its own for good.
local function requeue(job)
  setStatus(job.id, job.seq, job.status, "pending")
  call("HDEL", key("job:" .. job.id), "started", "worker")
  enqueue(job.id, job.user, job.level, job.seq, job.created, job.kind)
end

-- Its worker is gone. Once is bad luck; a second dead worker makes it a dead letter.
local function lose(job, why)
  release(job)
  total("lost")
  local losses = call("HINCRBY", key("job:" .. job.id), "losses", 1)
  if losses >= 2 then
    finish(job, "failed", "given up after two workers were lost: " .. why, why)
  else
    total("retries")
    requeue(job)
  end
  publish(job.id, "job_updated")
end

-- Back without anybody's fault.
local function giveUp(job)
  release(job)
  requeue(job)
  publish(job.id, "job_updated")
end

-- A late answer of a lost lease is told from the holder's by its token. A worker that knows no tokens is told by who it
-- authenticated as, or by the name it gave.
local function holds(job, token, principal)
  if token ~= "" then return job.token == token end
  if job.heartbeat == "1" then return false end
  return principal == "" or job.holder == "" or job.holder == principal
end
`
