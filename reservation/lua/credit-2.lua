#!lua flags=allow-oom
-- Second step of a transfer: adds the lent units to this lane, once, however often the step is repeated. Runs with full
-- memory, which must not keep units in transit.
--
-- KEYS
--   1 state of the lane
--   2 transfers of the sale in this lane
-- ARGV
--   1 short sale id
--   2 epoch
--   3 SKU index
--   4 lane that lent the units
--   5 number of the transfer
--   6 units
-- Returns an integer
-- Outputs
--   1 CREDITED
--   0 REPEATED this transfer or a later one of the same lane was credited before
--   -1 STALE the lane does not know the sale, has another epoch, or has closed the sale for recovery

--- @include names
--- @include errors
--- @include many_lanes

local number, units = whole(ARGV[5], 1, 9007199254740000), whole(ARGV[6], 1, 4294967295)
local record = 'i:' .. string.format('%.0f', index) .. ':' .. string.format('%.0f', whole(ARGV[4], 0, 4095))
if not stock then
  return -1
end
local last = tonumber(call('HGET', KEYS[2], record) or '0')
if not last then
  corrupt('transfer')
end
if number <= last then
  return 0
end
local available, reserved, paid, rejected, allotted, borrowed, lent = decode('>I4I4I4I4I4I4I4', stock)
available, borrowed = available + units, borrowed + units
if max(available, borrowed) > 4294967295 then
  malformed('more units than a counter holds')
end
call('HSET', KEYS[2], record, string.format('%.0f', number))
-- The units that were wanted here have come: byte 30 becomes 0.
call(
  'HSET', KEYS[1], field,
  pack('>I4I4I4I4I4I4I4', available, reserved, paid, rejected, allotted, borrowed, lent)
    .. sub(stock, 29, 29) .. char(0) .. sub(stock, 31)
)
return 1
