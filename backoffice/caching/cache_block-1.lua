#!lua flags=allow-oom
-- A change begins: whatever is in the place goes, nobody fills it until the change ends or the mark's life does.
-- KEYS: 1 place
-- ARGV: 1 mark of this change, 2 its life in ms, 3 channel
-- Answer: 1
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('PUBLISH', ARGV[3], KEYS[1])
return 1
