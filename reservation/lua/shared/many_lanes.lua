-- One SKU of a sale of many lanes. KEYS 1 and ARGV 1 to 3 like `lend-2`. Makes `field`, its name, and `stock`, its
-- text: nil when the lane does not know the sale, has another epoch, or has closed the sale for recovery.
local function whole(text, least, most)
  local number = tonumber(text)
  if not number or number < least or number > most or number % 1 ~= 0 then
    malformed('numbers')
  end
  return number
end

local epoch, index = whole(ARGV[2], 0, 4294967295), whole(ARGV[3], 0, 199)
local field = 's:' .. ARGV[1] .. ':' .. string.format('%.0f', index)
local known = call('HMGET', KEYS[1], 'd:' .. ARGV[1], field)
local stock = known[2]
if known[1] and #known[1] < 30 then
  corrupt('definition')
end
if not known[1] or byte(known[1], 1) == 3 or decode('>I4', known[1], 2) ~= epoch then
  stock = nil
end
if stock and #stock ~= 31 then
  corrupt('stock')
end
