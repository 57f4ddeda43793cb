-- One order's change of state. KEYS and ARGV like `cancel-4`; needs `transitions`. Makes `now_ms`, `read_order`,
-- `change_order`.
--- @include sequence
--- @include value
--- @include user

local time = call('TIME')
local now_ms = time[1] * 1000 + floor(time[2] / 1000)
local seq = 0
local sale, order_id = ARGV[1], ARGV[2]
if #sale ~= 22 or #order_id ~= 16 or sub(KEYS[3], -16) ~= order_id then
  malformed('ids')
end

-- The order's idempotency key: the field of the user's hash whose record begins with the order id. Empty when the
-- janitor has removed the user's hash.
local function read_key()
  local records = call('HGETALL', KEYS[4])
  for at = 2, #records, 2 do
    if sub(records[at], 1, 16) == order_id and records[at - 1] ~= STATE then
      return records[at - 1]
    end
  end
  return ''
end

-- The order's entry, its status and the end of its hold; nil when the lane does not know the order.
local function read_order()
  local value = call('GET', KEYS[3])
  if not value then
    return nil
  end
  -- The user's key ends with sale and user, the body begins with user and sale.
  local owner = sub(KEYS[4], -16) .. sub(KEYS[4], -32, -17)
  if #value < 62 or byte(value, 1) ~= 2 or sub(value, 27, 58) ~= owner then
    corrupt('order')
  end
  return entry_of(value, order_id, read_key()), byte(value, 2), (decode('>I6', value, 15))
end

-- The lines of an entry: SKU indices and quantities.
local function read_lines(entry)
  local at = 79 + byte(entry, 78)
  local skus, units, seen = {}, {}, {}
  for line = 1, byte(entry, at) or 0 do
    local sku, quantity = byte(entry, at + 1, at + 2)
    local sku_length = byte(entry, at + 8)
    if not sku_length or seen[sku] then
      corrupt('lines')
    end
    seen[sku] = true
    skus[line], units[line] = sku, quantity
    at = at + 8 + sku_length
  end
  if #skus == 0 or at ~= #entry then
    corrupt('lines')
  end
  return skus, units
end

-- The user's state with the units subtracted from its purchase counters; nil when the janitor has removed the user's
-- hash.
local function return_purchases(skus, units)
  local state = call('HGET', KEYS[4], STATE)
  if not state then
    return nil
  end
  if not is_state(state) then
    corrupt('user')
  end
  local owed, counters, count = {}, { sub(state, 1, ARRIVAL_LENGTH) }, 1
  for line = 1, #skus do
    owed[skus[line]] = units[line]
  end
  for at = ARRIVAL_LENGTH + 1, #state, 3 do
    local sku, high, low = byte(state, at, at + 2)
    local bought = high * 256 + low - (owed[sku] or 0)
    owed[sku] = nil
    if bought < 0 then
      corrupt('purchase counter below zero')
    end
    if bought > 0 then
      count = count + 1
      counters[count] = char(sku, floor(bought / 256), bought % 256)
    end
  end
  if next(owed) then
    corrupt('purchase counter missing')
  end
  return concat(counters)
end

--- @include append
--- @include elsewhere

-- Writes the next version of a reserved order and moves its units; returns the answer. All checks precede the first
-- write. NOT_FOUND for an order of an older epoch than the sale's: the rebuild in between did not restore the order
-- and counted none of its units as reserved, so the reserved units belong to other orders.
local function change_order(entry, status)
  local version = decode('>I2', entry, 3)
  if version >= 65535 then
    corrupt('version')
  end
  local skus, units = read_lines(entry)
  local fields = { 'seq', 'd:' .. sale }
  for line = 1, #skus do
    fields[line + 2] = 's:' .. sale .. ':' .. skus[line]
  end
  local known = call('HMGET', KEYS[1], unpack(fields))
  seq = read_sequence(known[1])
  if not known[2] then
    corrupt('the lane does not know the sale')
  end
  if byte(known[2], 1) == 3 then
    corrupt('the sale is closed for recovery')
  end
  if #known[2] < 30 then
    corrupt('definition')
  end
  if decode('>I4', entry, 5) < decode('>I4', known[2], 2) then
    return { NOT_FOUND, '' }
  end
  local changes = { 'seq', seq + 1 }
  for line = 1, #skus do
    local stock = known[line + 2]
    if not is_stock(stock) then
      corrupt('stock')
    end
    local available, reserved, paid, rejected = decode('>I4I4I4I4', stock)
    reserved = reserved - units[line]
    if status == PAID then
      paid = paid + units[line]
    elseif status == REJECTED then
      rejected = rejected + units[line]
    else
      available = available + units[line]
      stock = with_returned(stock, units[line])
    end
    if reserved < 0 or max(available, paid, rejected) > 4294967295 then
      corrupt('stock counter out of bounds')
    end
    changes[2 * line + 1] = fields[line + 2]
    changes[2 * line + 2] = pack('>I4I4I4I4', available, reserved, paid, rejected) .. sub(stock, 17)
  end
  local purchases = status ~= PAID and return_purchases(skus, units)

  local changed = pack('>BBI2', 2, status, version + 1) .. sub(entry, 5, 20) .. pack('>I6', now_ms) .. sub(entry, 27)
  append(KEYS[2], changed)
  call('SET', KEYS[3], value_of(changed))
  call('HSET', KEYS[1], unpack(changes))
  if purchases then
    call('HSET', KEYS[4], STATE, purchases)
  end
  return { DONE, changed }
end
