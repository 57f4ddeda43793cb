-- An order's value in Redis is its entry without the order id, which is the end of its key, and without the idempotency
-- key and its length: that is a field of the user's hash (domain.orders.encode_value).
local function value_of(entry)
  return sub(entry, 1, 26) .. sub(entry, 43, 77) .. sub(entry, 79 + byte(entry, 78))
end

local function entry_of(value, order_id, key)
  return sub(value, 1, 26) .. order_id .. sub(value, 27, 61) .. char(#key) .. key .. sub(value, 62)
end
