-- An order's value in Redis is its entry without the order id, which is the end of its key
-- (domain.orders.encode_value).
local function value_of(entry)
  return sub(entry, 1, 26) .. sub(entry, 43)
end

local function entry_of(value, order_id)
  return sub(value, 1, 26) .. order_id .. sub(value, 27)
end
