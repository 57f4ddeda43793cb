#!lua flags=allow-oom
-- Removes a sale from the lane's state: definition and stock. The caller waits until 24 h after the sale's end.
--
-- KEYS
--   1 state of the lane
-- ARGV
--   1 short sale id
-- Returns an integer
-- Outputs
--   1 FORGOTTEN 1 or more: the number of fields removed
--   0 UNKNOWN the lane does not know the sale
--   -1 NOT_OVER the sale is not over
--   -2 RESERVED units are still reserved: their holds must be collected first

--- @include names
--- @include errors
--- @include elsewhere

local definition = call('HGET', KEYS[1], 'd:' .. ARGV[1])
if not definition then
  return 0
end
if #definition < 30 then
  corrupt('definition')
end
local state, _, _, _, ends_at_ms = decode('>BI4I4I8I8', definition)
local skus = byte(definition, 30)
local time = call('TIME')
if state ~= 2 and time[1] * 1000 + floor(time[2] / 1000) < ends_at_ms then
  return -1
end
local fields = { 'd:' .. ARGV[1] }
for index = 0, skus - 1 do
  fields[index + 2] = 's:' .. ARGV[1] .. ':' .. index
end
local known = call('HMGET', KEYS[1], unpack(fields))
for place = 2, #fields do
  local stock = known[place]
  if not is_stock(stock) then
    corrupt('stock')
  end
  if decode('>I4', stock, 5) > 0 then
    return -2
  end
end
return call('HDEL', KEYS[1], unpack(fields))
