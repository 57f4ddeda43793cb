#!lua flags=allow-oom
-- Acknowledge and remove in one step: an acknowledged entry that stayed would count against the bound for ever.
-- KEYS: 1 stream
-- ARGV: 1 group, 2 entry id
-- Answer: 1 removed, 0 it was settled before
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  return 0
end
return redis.call('XDEL', KEYS[1], ARGV[2])
