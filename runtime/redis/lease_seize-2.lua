#!lua flags=allow-oom
-- Take a lease from whoever holds it, with a token greater than all earlier ones.
-- KEYS: 1 lease, 2 counter of tokens
-- ARGV: 1 life in milliseconds
-- Answer: the token
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], token, 'PX', ARGV[1])
return token
