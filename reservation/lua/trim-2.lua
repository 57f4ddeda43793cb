#!lua flags=allow-oom
-- Removes the confirmed beginning of the stream, for the owner of the lane's lease only. This is the relay's
-- acknowledgement; a relay that lost its lease can repeat, never delete.
--
-- KEYS
--   1 stream of the lane
--   2 lease of the lane
-- ARGV
--   1 fencing token
--   2 lane_seq up to which, inclusive, all is confirmed
-- Returns an integer: the number of entries trimmed, or
-- Outputs
--   -1 another process holds the lease, or none

--- @include names
--- @include errors

local confirmed = tonumber(ARGV[2])
if not confirmed or confirmed < 0 or confirmed > 9007199254740000 or confirmed % 1 ~= 0 then
  malformed('lane_seq')
end
if call('GET', KEYS[2]) ~= ARGV[1] then
  return -1
end
return call('XTRIM', KEYS[1], 'MINID', '=', string.format('%.0f', confirmed + 1) .. '-0')
