#!lua
-- Adds units to a SKU of a sale in this lane, once per idempotency key. In a sale of many lanes 0 units are allowed:
-- the other lanes get some, so more units may be left.
--
-- KEYS
--   1 state of the lane
--   2 restocks of the sale
-- ARGV
--   1 short sale id
--   2 SKU index
--   3 quantity
--   4 idempotency key
-- Returns an integer
-- Outputs
--   1 APPLIED
--   0 REPEATED applied before
--   -1 UNKNOWN the lane does not know the sale or the SKU, or has closed the sale for recovery
--   -2 KEY_REUSED the key was used with other numbers

--- @include names
--- @include errors
--- @include elsewhere

local index, quantity = tonumber(ARGV[2]), tonumber(ARGV[3])
if not index or not quantity or index % 1 ~= 0 or quantity % 1 ~= 0 or quantity < 0 or quantity > 4294967295 then
  malformed('numbers')
end
local field = 's:' .. ARGV[1] .. ':' .. index
local known = call('HMGET', KEYS[1], 'd:' .. ARGV[1], field)
local stock = known[2]
if not known[1] or not stock or byte(known[1], 1) == 3 then
  return -1
end
if not is_stock(stock) then
  corrupt('stock')
end
local wanted = index .. ':' .. string.format('%.0f', quantity)
if quantity == 0 and #stock == 28 then
  malformed('numbers')
end
local applied = call('HGET', KEYS[2], ARGV[4])
if applied then
  return applied == wanted and 0 or -2
end
local available, _, _, _, allotted = decode('>I4I4I4I4I4', stock)
available, allotted = available + quantity, allotted + quantity
if available > 4294967295 or allotted > 4294967295 then
  malformed('more units than a counter holds')
end
stock = with_returned(stock, 255) -- the other lanes may get more units: no bound is known
call('HSET', KEYS[2], ARGV[4], wanted)
call('HSET', KEYS[1], field, pack('>I4', available) .. sub(stock, 5, 16) .. pack('>I4', allotted) .. sub(stock, 21))
return 1
