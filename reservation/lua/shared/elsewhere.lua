-- The counters of one SKU: 28 bytes, in a sale of many lanes 31 (domain.sales.Elsewhere): 29 units left in all lanes
-- and in transit, at most (255: no bound), 30 quantity that is wanted here, 31 number of returns modulo 256.
local function is_stock(text)
  return text and (#text == 28 or #text == 31)
end

-- The counters after units came back to the lane or were added: more units may be left, and an older bound is void.
local function with_returned(stock, units)
  if #stock == 28 then
    return stock
  end
  local left, wanted, returns = byte(stock, 29, 31)
  left = left + units
  if left > 255 then
    left = 255
  end
  return sub(stock, 1, 28) .. char(left, wanted, (returns + 1) % 256)
end
