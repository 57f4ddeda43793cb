#!lua flags=allow-oom
-- A consumer's sign of life: the entries that it holds count as idle from now.
-- KEYS: 1 stream
-- ARGV: 1 group, 2 consumer, then entry ids
-- Answer: the ids that are the consumer's no more
local lost = {}
for i = 3, #ARGV do
  local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1, ARGV[2])
  if #pending == 0 then
    lost[#lost + 1] = ARGV[i]
  else
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
  end
end
return lost
