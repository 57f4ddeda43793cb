#!lua
-- Append a message, unless the queue is at its bound.
-- KEYS: 1 stream, 2 waiting retries (sorted set)
-- ARGV: 1 bound of stream and retries together, 2 message id, 3 headers (JSON), 4 body, 5 first seen in Unix ms or 0
-- for now, 6 history (JSON)
-- Answer: 1 appended, 0 at the bound
if redis.call('XLEN', KEYS[1]) + redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[1]) then
  return 0
end
local first_ms = ARGV[5]
if first_ms == '0' then
  local time = redis.call('TIME')
  first_ms = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
end
-- Fields: m message id, h headers, b body, a attempt, f first seen, r history, k failures by kind.
redis.call('XADD', KEYS[1], '*', 'm', ARGV[2], 'h', ARGV[3], 'b', ARGV[4], 'a', 1, 'f', first_ms, 'r', ARGV[6],
  'k', '{}')
return 1
