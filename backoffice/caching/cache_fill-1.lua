#!lua
-- Put a loaded value where its reader's lease still stands: a change since then has taken the lease away, and the value may
-- be old. Without a value, give the lease back.
-- KEYS: 1 place
-- ARGV: 1 the lease, 2 content or empty, 3 its life in ms
-- Answer: 1 done, 0 the lease was gone and nothing changed
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
