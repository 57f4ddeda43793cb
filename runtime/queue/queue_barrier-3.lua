#!lua flags=no-writes
-- Whether all messages up to an entry of the stream are settled, retries included. An entry stays in the stream until
-- it is acknowledged, so entries in the hands of consumers count.
-- KEYS: 1 stream, 2 waiting retries (sorted set), 3 entry id of the last message moved back
-- ARGV: 1 entry id of the barrier, or an empty text to begin one
-- Answer: 1 whether all are settled (0 or 1), 2 entry id of the barrier
local barrier = ARGV[1]
if barrier == '' then
  barrier = '0-0'
  if redis.call('EXISTS', KEYS[1]) == 1 then
    for at, value in ipairs(redis.call('XINFO', 'STREAM', KEYS[1])) do
      if value == 'last-generated-id' then
        barrier = redis.call('XINFO', 'STREAM', KEYS[1])[at + 1]
      end
    end
  end
end
if redis.call('ZCARD', KEYS[2]) > 0 or #redis.call('XRANGE', KEYS[1], '-', barrier, 'COUNT', 1) > 0 then
  return { 0, barrier }
end
-- A retry of an older message was moved back behind the barrier.
local moved = redis.call('GET', KEYS[3])
if moved and #redis.call('XRANGE', KEYS[1], '-', moved, 'COUNT', 1) > 0 then
  return { 0, barrier }
end
return { 1, barrier }
