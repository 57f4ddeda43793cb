#!lua
-- Gives one user of a sale under rebuild the orders that PostgreSQL has. May be repeated: everything is absolute.
--
-- KEYS
--   1 state of the lane
--   2 user hash
--   3 + i order i, i from 0
-- ARGV
--   1 short sale id
--   2 mark of the rebuild
--   3 1: forget what the user's hash says, 0: add to it
--   4 the user's `s`: arrival time 0, then the purchase counters
--   5 + 4i field of order i: `k` + idempotency key
--   6 + 4i apply-once record
--   7 + 4i the order's entry
--   8 + 4i seconds until it may go, 0: none
-- Returns an integer
-- Outputs
--   1 restored
--   -1 the sale is not under this rebuild (any more)

--- @include names
--- @include errors

local orders = #KEYS - 2
if orders < 1 or orders > 64 or #ARGV ~= 4 + 4 * orders or #ARGV[4] < 8 or (#ARGV[4] - 8) % 3 ~= 0 then
  malformed('orders')
end
for place = 5, #ARGV, 4 do
  local ttl_s = tonumber(ARGV[place + 3])
  if byte(ARGV[place], 1) ~= 107 or #ARGV[place + 1] < 26 or #ARGV[place + 2] < 85 or not ttl_s or ttl_s < 0 then
    malformed('order')
  end
end
if call('HGET', KEYS[1], 'b:' .. ARGV[1]) ~= ARGV[2] then
  return -1
end
if ARGV[3] == '1' then
  call('DEL', KEYS[2])
end
local fields = { 's', ARGV[4] }
for i = 0, orders - 1 do
  local at = 5 + 4 * i
  fields[#fields + 1] = ARGV[at]
  fields[#fields + 1] = ARGV[at + 1]
  if ARGV[at + 3] == '0' then
    call('SET', KEYS[3 + i], ARGV[at + 2])
  else
    call('SET', KEYS[3 + i], ARGV[at + 2], 'EX', ARGV[at + 3])
  end
end
call('HSET', KEYS[2], unpack(fields))
return 1
