#!lua flags=allow-oom
-- Begin a change: replace the content of the place by a mark. The place cannot be filled until the change ends or the
-- mark expires.
-- KEYS: 1 place
-- ARGV: 1 mark of this change, 2 its time to live in ms, 3 channel
-- Answer: 1
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
redis.call('PUBLISH', ARGV[3], KEYS[1])
return 1
