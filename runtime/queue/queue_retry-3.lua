#!lua flags=allow-oom
-- Take a message out of the stream and let it wait until it is due.
-- KEYS: 1 stream, 2 waiting retries (sorted set: entry id by due time in ms), 3 their messages (hash by entry id)
-- ARGV: 1 group, 2 entry id, 3 delay in ms, 4 next attempt, 5 history (JSON), 6 failures by kind (JSON)
-- Answer: 1 waiting, 0 the message was settled before
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if not entry or redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  return 0
end
local fields = entry[2] -- m, h, b, a, f, r, k with their values, as queue_publish-2 writes them
local time = redis.call('TIME')
local due_ms = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[3]
redis.call('HSET', KEYS[3], ARGV[2],
  cmsgpack.pack({ fields[2], fields[4], fields[6], ARGV[4], fields[10], ARGV[5], ARGV[6] }))
redis.call('ZADD', KEYS[2], string.format('%d', due_ms), ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
return 1
