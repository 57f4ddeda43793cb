#!lua flags=allow-oom
-- Take a free lease, with a token greater than all earlier ones.
-- KEYS: 1 lease, 2 counter of tokens
-- ARGV: 1 life in milliseconds
-- Answer: the token; 0 when the lease is held
local left = redis.call('PTTL', KEYS[1])
if left ~= -2 then
  -- No lease lives longer than its life. After the clock went back it would: its end is a time of the clock.
  if left > tonumber(ARGV[1]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[1])
  end
  return 0
end
local token = redis.call('INCR', KEYS[2])
redis.call('SET', KEYS[1], token, 'PX', ARGV[1])
return token
