#!lua flags=allow-oom
-- End a change: empty the place, unless another change has marked it since. Notify all processes in either case.
-- KEYS: 1 place
-- ARGV: 1 mark of this change, 2 channel
-- Answer: 1 emptied, 0 another change is in progress
local content = redis.call('GET', KEYS[1])
local emptied = 1
if content and content:sub(1, 1) == 'B' and content ~= ARGV[1] then
  emptied = 0
else
  redis.call('DEL', KEYS[1])
end
redis.call('PUBLISH', ARGV[2], KEYS[1])
return emptied
