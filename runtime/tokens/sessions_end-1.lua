#!lua flags=allow-oom
-- End sessions: note the generation of a user's end, publish the note, and remove notes that no living token needs.
-- Beyond the bound the oldest notes become one for all users (the empty member): more tokens may end than requested,
-- never fewer.
-- KEYS: 1 sorted set: 16 bytes of a user id, or none -> generation (Unix ms)
-- ARGV: 1 channel, 2 generation below which a note is useless, 3 number of notes kept, then per note: generation,
-- member
-- Answer: notes kept
for i = 4, #ARGV, 2 do
  redis.call('ZADD', KEYS[1], 'GT', ARGV[i], ARGV[i + 1])
  redis.call('PUBLISH', ARGV[1], ARGV[i] .. ' ' .. ARGV[i + 1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[2])
local over = redis.call('ZCARD', KEYS[1]) - ARGV[3]
if over > 0 then
  local oldest = redis.call('ZPOPMIN', KEYS[1], over)
  local floor = oldest[#oldest]
  redis.call('ZADD', KEYS[1], 'GT', floor, '')
  redis.call('PUBLISH', ARGV[1], floor .. ' ')
end
return redis.call('ZCARD', KEYS[1])
