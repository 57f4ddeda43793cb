#!lua
-- Append records to one partition, all or none, and drop the oldest beyond the retention bound.
-- KEYS: 1 stream
-- ARGV: 1 retention bound, then key and value of each record
-- Answer: id of the last record
local last
for i = 2, #ARGV, 2 do
  last = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'k', ARGV[i], 'v', ARGV[i + 1])
end
return last
