#!lua flags=allow-oom
-- Prolong a lease that is still ours.
-- KEYS: 1 lease
-- ARGV: 1 token, 2 life in milliseconds
-- Answer: 1 prolonged, 0 the lease ended or another process holds it
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
