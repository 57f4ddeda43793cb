#!lua flags=allow-oom
-- Take a free lease, with a token greater than all earlier ones.
-- KEYS: 1 lease, 2 counter of tokens
-- ARGV: 1 life in milliseconds
-- Answer: the token; 0 when the lease is held
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], token, 'PX', ARGV[1])
return token
