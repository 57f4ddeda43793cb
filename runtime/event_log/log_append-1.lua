#!lua
-- Append records to one partition, all or none, and drop the oldest beyond the retention bound. Entry ids are
-- `0-<offset>`: offsets count from 1 without a gap, so a reader sees a lost range and its lag.
-- KEYS: 1 stream
-- ARGV: 1 retention bound, then key, value and headers (JSON, or an empty text) of each record
-- Answer: id of the last record
local time = redis.call('TIME')
local now_ms = string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000))
local last
for i = 2, #ARGV, 3 do
  if ARGV[i + 2] == '' then
    last = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '0-*', 't', now_ms, 'k', ARGV[i], 'v', ARGV[i + 1])
  else
    last = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '0-*', 't', now_ms, 'k', ARGV[i], 'v', ARGV[i + 1],
      'h', ARGV[i + 2])
  end
end
return last
