#!lua
-- Gives a lane a sale: definition and stock. Never overwrites, because a sale once loaded is only ever rebuilt.
--
-- KEYS
--   1 state of the lane
-- ARGV
--   1 short sale id
--   2 packed definition
--   3.. packed stock of each SKU, in index order
-- Returns an integer
-- Outputs
--   1 LOADED
--   0 KNOWN the lane knew the sale, nothing changed

--- @include names
--- @include errors
--- @include elsewhere

local sale, definition = ARGV[1], ARGV[2]
if #sale ~= 22 or #definition < 30 or #definition ~= 30 + 2 * byte(definition, 30) then
  malformed('definition')
end
local skus = byte(definition, 30)
if skus == 0 or #ARGV ~= 2 + skus then
  malformed('number of SKUs')
end
local names, values = { 'd:' .. sale }, { 'd:' .. sale, definition }
for index = 0, skus - 1 do
  local stock = ARGV[3 + index]
  if not is_stock(stock) then
    malformed('stock')
  end
  local available, reserved, paid, rejected, allotted, borrowed, lent = decode('>I4I4I4I4I4I4I4', stock)
  if allotted + borrowed - lent ~= available + reserved + paid + rejected then
    malformed('stock is not balanced')
  end
  local field = 's:' .. sale .. ':' .. index
  names[index + 2] = field
  values[2 * index + 3], values[2 * index + 4] = field, stock
end
local known = call('HMGET', KEYS[1], unpack(names))
if known[1] then
  return 0
end
for place = 2, #names do
  if known[place] then
    corrupt('stock without a definition')
  end
end
call('HSET', KEYS[1], unpack(values))
return 1
