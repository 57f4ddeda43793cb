#!lua
-- Restores the orders of one user of a sale under rebuild from PostgreSQL. May be repeated: all values are absolute.
--
-- KEYS
--   1 state of the lane
--   2 user hash
--   3 + i order i, i from 0; ends with the order id
-- ARGV
--   1 short sale id
--   2 mark of the rebuild
--   3 1: delete the user's hash first, 0: add to it
--   4 the user's state: arrival time 0, then the purchase counters
--   5 + 4i field of order i: the packed idempotency key
--   6 + 4i apply-once record
--   7 + 4i the order's entry
--   8 + 4i seconds to live, 0: no end
-- Returns an integer
-- Outputs
--   1 DONE
--   -1 SUPERSEDED the sale is not under this rebuild (any more)

--- @include names
--- @include errors
--- @include value
--- @include user

local orders = #KEYS - 2
if orders < 1 or orders > 64 or #ARGV ~= 4 + 4 * orders or not is_state(ARGV[4]) then
  malformed('orders')
end
for i = 0, orders - 1 do
  local at = 5 + 4 * i
  local ttl_s = tonumber(ARGV[at + 3])
  if ARGV[at] == STATE or #ARGV[at + 1] < 23 or #ARGV[at + 2] < 79 or not ttl_s or ttl_s < 0 then
    malformed('order')
  end
  if byte(ARGV[at + 2], 1) ~= 2 or sub(ARGV[at + 2], 27, 42) ~= sub(KEYS[3 + i], -16) then
    malformed('entry')
  end
end
if call('HGET', KEYS[1], 'b:' .. ARGV[1]) ~= ARGV[2] then
  return -1
end
if ARGV[3] == '1' then
  call('DEL', KEYS[2])
end
local fields = { STATE, ARGV[4] }
for i = 0, orders - 1 do
  local at = 5 + 4 * i
  fields[#fields + 1] = ARGV[at]
  fields[#fields + 1] = ARGV[at + 1]
  local value = value_of(ARGV[at + 2])
  if ARGV[at + 3] == '0' then
    call('SET', KEYS[3 + i], value)
  else
    call('SET', KEYS[3 + i], value, 'EX', ARGV[at + 3])
  end
end
call('HSET', KEYS[2], unpack(fields))
return 1
