#!lua
-- Store the position that a replica must have replayed before this subject is read from it. The larger position stays.
-- KEYS: 1 position of the subject
-- ARGV: 1 position in the write-ahead log in bytes, 2 its life in ms
-- Answer: 1 stored, 0 a larger one was stored already and its life is renewed
local known = redis.call('GET', KEYS[1])
-- Exact up to 2^53: nine million gigabytes of log.
if known and tonumber(known) > tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
