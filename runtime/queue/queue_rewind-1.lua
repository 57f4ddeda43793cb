#!lua flags=allow-oom
-- After the clock of Redis went back: deliveries that were made later than now count as idle from now. Otherwise those
-- of a dead consumer could not be claimed until the clock is there again.
-- KEYS: 1 stream
-- ARGV: 1 group, 2 first entry id to look at, 3 most entries to look at
-- Answer: the entry id to go on behind, or an empty text
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[2], '+', ARGV[3])
for _, delivery in ipairs(pending) do
  if delivery[3] == 0 then
    redis.call('XCLAIM', KEYS[1], ARGV[1], delivery[2], 0, delivery[1], 'IDLE', 0, 'JUSTID')
  end
end
if #pending < tonumber(ARGV[3]) then
  return ''
end
return pending[#pending][1]
