#!lua flags=allow-oom
-- Put a dead letter back into its queue: a first attempt that keeps its history. The bound does not hold people up.
-- KEYS: 1 stream, 2 dead letters (stream)
-- ARGV: 1 id in the dead letters
-- Answer: 1 put back, 0 no such dead letter, -1 it never was a message
local entry = redis.call('XRANGE', KEYS[2], ARGV[1], ARGV[1])[1]
if not entry then
  return 0
end
local fields = entry[2] -- m, h, b, a, f, r, w with their values, as queue_dead-2 writes them
if fields[8] == '0' then
  return -1
end
redis.call('XADD', KEYS[1], '*', 'm', fields[2], 'h', fields[4], 'b', fields[6], 'a', 1, 'f', fields[10],
  'r', fields[12])
redis.call('XDEL', KEYS[2], ARGV[1])
return 1
