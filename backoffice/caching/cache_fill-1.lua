#!lua
-- Put a loaded value into a place that still holds the lease of its reader. A change since then has removed the lease,
-- because the value may be old. Without a value, give the lease back.
-- KEYS: 1 place
-- ARGV: 1 lease, 2 content or empty, 3 time to live in ms
-- Answer: 1 done, 0 the lease is gone and nothing changed
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
