-- The reservation of the peers, as a shop would write it: one script call an order, atomic and idempotent.
-- KEYS: stock of the SKU, hash of the buyer in the sale, holds by end, stream of orders.
-- ARGV: idempotency key, units, purchase limit, order id, end of the hold (ms), entry.
-- Returns the outcome and, for accepted orders, the order id and the end of the hold of the first request.
local known = redis.call('HGET', KEYS[2], 'key:' .. ARGV[1])
if known then
  local id, ends = string.match(known, '^([^|]*)|(.*)$')
  return {'replayed', id, ends}
end
local units = tonumber(ARGV[2])
local held = tonumber(redis.call('HGET', KEYS[2], 'units') or '0')
if held + units > tonumber(ARGV[3]) then
  return {'purchase_limit_exceeded'}
end
local left = redis.call('GET', KEYS[1])
if not left then
  return {'sku_not_found'}
end
if tonumber(left) < units then
  return {'sold_out'}
end
redis.call('DECRBY', KEYS[1], units)
redis.call('HSET', KEYS[2], 'key:' .. ARGV[1], ARGV[4] .. '|' .. ARGV[5], 'units', held + units)
redis.call('ZADD', KEYS[3], ARGV[5], ARGV[4])
redis.call('XADD', KEYS[4], '*', 'order', ARGV[6])
return {'accepted', ARGV[4], ARGV[5]}
