#!lua flags=allow-oom
-- Move a message to the dead letters.
-- KEYS: 1 stream, 2 dead letters (stream)
-- ARGV: 1 group, 2 entry id, 3 bound of dead letters, 4 reason, 5 history (JSON)
-- Answer: 1 moved, 0 somebody settled it before, -1 the dead letters are at their bound
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if not entry then
  return 0
end
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[3]) then
  return -1
end
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then
  return 0
end
local fields = entry[2] -- m, h, b, a, f, r with their values, as queue_publish-2 writes them
redis.call('XADD', KEYS[2], '*', 'm', fields[2], 'h', fields[4], 'b', fields[6], 'a', fields[8], 'f', fields[10],
  'r', ARGV[5], 'w', ARGV[4])
redis.call('XDEL', KEYS[1], ARGV[2])
return 1
