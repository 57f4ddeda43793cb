#!lua flags=allow-oom
-- Add a dead letter that never was a message: its attempt is 0.
-- KEYS: 1 dead letters (stream)
-- ARGV: 1 bound of dead letters, 2 message id, 3 headers (JSON), 4 body, 5 reason
-- Answer: 1 added, -1 the dead letters are at their bound
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then
  return -1
end
local time = redis.call('TIME')
local now_ms = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('XADD', KEYS[1], '*', 'm', ARGV[2], 'h', ARGV[3], 'b', ARGV[4], 'a', 0, 'f', now_ms, 'r', '[]', 'w', ARGV[5])
return 1
