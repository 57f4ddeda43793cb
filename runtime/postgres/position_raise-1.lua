#!lua
-- Remember how far a replica must be for whoever reads this. Of two writers the further position stays.
-- KEYS: 1 place
-- ARGV: 1 position in the write-ahead log in bytes, 2 its life in ms
-- Answer: 1 remembered, 0 a further one was there and lives anew
local known = redis.call('GET', KEYS[1])
-- Exact up to 2^53: nine million gigabytes of log.
if known and tonumber(known) > tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
