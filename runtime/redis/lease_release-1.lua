#!lua flags=allow-oom
-- Give back a lease that is still ours, so that the next holder need not wait for its end.
-- KEYS: 1 lease
-- ARGV: 1 token
-- Answer: 1 given back, 0 the lease ended or another process holds it
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('DEL', KEYS[1])
