#!lua flags=allow-oom
-- A consumer leaves: its deliveries may be claimed at once. It is removed only when none is left, because the pending
-- entries of a removed consumer are never delivered again.
-- KEYS: 1 stream
-- ARGV: 1 group, 2 consumer, then entry ids
-- Answer: 1 removed, 0 it has pending entries
for i = 3, #ARGV do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2]) == 1 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', 86400000, 'JUSTID')
  end
end
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
  return 0
end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
