#!lua
-- First step of a transfer: takes units of a SKU out of this lane, for another lane of the sale, and records them. Each
-- pair of lanes has one transfer of a SKU at a time; the transfers of a pair are numbered without a gap.
--
-- KEYS
--   1 state of the lane
--   2 transfers of the sale in this lane
-- ARGV
--   1 short sale id
--   2 epoch
--   3 SKU index
--   4 lane that gets the units
--   5 number of the transfer
--   6 units to lend, at most; fewer are lent when fewer are available
-- Returns an integer
-- Outputs
--   1 LENT 1 or more: the number of units lent
--   0 NOT_LENT no unit is available, or the transfer before is not cleared, or this number is not the next one
--   -1 STALE the lane does not know the sale, has another epoch, or has closed the sale for recovery

--- @include names
--- @include errors
--- @include many_lanes

local number, units = whole(ARGV[5], 1, 9007199254740000), whole(ARGV[6], 1, 4294967295)
local record = 'o:' .. string.format('%.0f', index) .. ':' .. string.format('%.0f', whole(ARGV[4], 0, 4095))
if not stock then
  return -1
end
local before = call('HGET', KEYS[2], record)
local last, in_transit = 0, 0
if before then
  last, in_transit = string.match(before, '^(%d+):(%d+)$')
  last, in_transit = tonumber(last), tonumber(in_transit)
  if not last then
    corrupt('transfer')
  end
end
local available, reserved, paid, rejected, allotted, borrowed, lent = decode('>I4I4I4I4I4I4I4', stock)
if units > available then
  units = available
end
if in_transit > 0 or number ~= last + 1 or units == 0 or lent + units > 4294967295 then
  return 0
end
call('HSET', KEYS[2], record, string.format('%.0f:%.0f', number, units))
call(
  'HSET', KEYS[1], field,
  pack('>I4I4I4I4I4I4I4', available - units, reserved, paid, rejected, allotted, borrowed, lent + units)
    .. sub(stock, 29)
)
return units
