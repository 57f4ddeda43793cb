#!lua flags=allow-oom
-- Move due messages back into the stream. One whose content is damaged or lost becomes an entry that no consumer can
-- decode, and so a dead letter: an error would keep back all retries behind it.
-- KEYS: 1 stream, 2 waiting retries (sorted set), 3 their messages (hash), 4 entry id of the last message moved back
-- ARGV: 1 most messages to move, 2 longest delay in ms: what is due later than that became so when the clock went
-- back, 3 consumer group
-- Answer: 1 ms until the next one is due, 0 if one is due now, -1 if none waits; 2 the time in microseconds; 3 number
-- of deliveries of all consumers that are not settled
local function is_message(m)
  if type(m) ~= 'table' then
    return false
  end
  for field = 1, 7 do
    if type(m[field]) ~= 'string' and type(m[field]) ~= 'number' then
      return false
    end
  end
  return true
end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format('%d', now_ms)
local latest = string.format('(%d', now_ms + ARGV[2])
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[1])
if #due == 0 then
  due = redis.call('ZRANGEBYSCORE', KEYS[2], latest, '+inf', 'LIMIT', 0, ARGV[1])
end
local moved
for _, id in ipairs(due) do
  local packed = redis.call('HGET', KEYS[3], id)
  local unpacked, m = pcall(cmsgpack.unpack, packed)
  if unpacked and is_message(m) then
    moved = redis.call('XADD', KEYS[1], '*',
      'm', m[1], 'h', m[2], 'b', m[3], 'a', m[4], 'f', m[5], 'r', m[6], 'k', m[7])
  else
    moved = redis.call('XADD', KEYS[1], '*', 'waiting', id, 'content', packed or '')
  end
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
end
if moved then
  -- The barrier waits for all entries up to this one: a retry may have been published before the barrier began.
  redis.call('SET', KEYS[4], moved)
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[3])
return {first[2] and math.max(0, first[2] - now_ms) or -1, time[1] * 1000000 + time[2], pending[1] or 0}
