#!lua
-- Count an attempt by several limits, unless one of them is used up. A refused attempt counts nowhere: otherwise one
-- client could use up the attempts of others.
-- KEYS: n counters
-- ARGV: per counter: maximum of attempts, window in s
-- Answer: place of the counter with the longest wait, that wait in s; 0 0 when the attempt was counted
local place, wait_s = 0, 0
for i, key in ipairs(KEYS) do
  if tonumber(redis.call('GET', key) or 0) >= tonumber(ARGV[2 * i - 1]) then
    local left_s = math.max(1, math.ceil(redis.call('PTTL', key) / 1000))
    if left_s > wait_s then
      place, wait_s = i, left_s
    end
  end
end
if place == 0 then
  for i, key in ipairs(KEYS) do
    redis.call('INCR', key)
    redis.call('EXPIRE', key, ARGV[2 * i], 'NX')
  end
end
return { place, wait_s }
