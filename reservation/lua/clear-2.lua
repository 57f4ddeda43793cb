#!lua flags=allow-oom
-- Last step of a transfer: its units are in the other lane, so this lane records them as in transit no more. Only then
-- can the next transfer of this pair of lanes begin.
--
-- KEYS
--   1 state of the lane
--   2 transfers of the sale in this lane
-- ARGV
--   1 short sale id
--   2 epoch
--   3 SKU index
--   4 lane that got the units
--   5 number of the transfer
-- Returns an integer
-- Outputs
--   1 CLEARED
--   0 REPEATED this transfer was cleared before
--   -1 STALE the lane does not know the sale, has another epoch, or has closed the sale for recovery

--- @include names
--- @include errors
--- @include many_lanes

local number = string.format('%.0f', whole(ARGV[5], 1, 9007199254740000))
local record = 'o:' .. string.format('%.0f', index) .. ':' .. string.format('%.0f', whole(ARGV[4], 0, 4095))
if not stock then
  return -1
end
local before = call('HGET', KEYS[2], record)
if not before then
  return 0
end
local last, in_transit = string.match(before, '^(%d+):(%d+)$')
if not last then
  corrupt('transfer')
end
if last ~= number or in_transit == '0' then
  return 0
end
call('HSET', KEYS[2], record, number .. ':0')
return 1
