-- What a batch says and what the lane knows of it, read once. Makes: `requests`, `sales`, `parsed`, `now_ms`, `now_us`,
-- `lane` (values read from the state hash; a stock field's place there is its slot), `available`, `reserved` (by slot).
local seq
local requests, sale_count = tonumber(ARGV[1]), tonumber(ARGV[2])
local interval_us, burst, length_max = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if not (requests and sale_count and interval_us and burst and length_max) then
  malformed('numbers')
end
if requests < 1 or requests > 64 or sale_count < 1 or sale_count > requests or interval_us < 1 or burst < 1 then
  malformed('bounds')
end
if #KEYS ~= 2 + 2 * requests or #ARGV ~= 5 + 3 * sale_count + 3 * requests then
  malformed('counts')
end

local time = call('TIME')
-- Microseconds since 1970 stay below 2^53 until the year 2255: a Lua number holds them exactly.
local now_us = time[1] * 1000000 + time[2]
local now_ms = floor(now_us / 1000)
-- A request is allowed while the arrival time is not further ahead than this.
local ahead_us_max = interval_us * burst - interval_us
local tat_of_fresh = pack('>I7', max(now_us + interval_us, now_us))

-- Requests of a crowd look alike: each distinct text of lines is read once.
local parsed, distinct = {}, {}
local fields, slot_of_field = { 'seq' }, {}
for place = 1, sale_count do
  fields[place + 1] = 'd:' .. ARGV[3 + 3 * place]
end
local first = 6 + 3 * sale_count
local slots_used = 1 + sale_count
for i = first, #ARGV, 3 do
  local text = ARGV[i + 1]
  if not parsed[text] then
    local place = byte(text, 1)
    if #text < 3 or #text % 2 == 0 or place >= sale_count then
      malformed('lines')
    end
    local count = (#text - 1) / 2
    local skus, units, slots = {}, {}, {}
    local prefix = 's:' .. ARGV[6 + 3 * place] .. ':'
    for line = 1, count do
      local sku, quantity = byte(text, 2 * line, 2 * line + 1)
      for earlier = 1, line - 1 do
        if skus[earlier] == sku then
          malformed('a SKU twice')
        end
      end
      if quantity == 0 then
        malformed('quantity')
      end
      local field = prefix .. sku
      local slot = slot_of_field[field]
      if not slot then
        slots_used = slots_used + 1
        slot = slots_used
        slot_of_field[field] = slot
        fields[slot] = field
      end
      skus[line], units[line], slots[line] = sku, quantity, slot
    end
    local order = { place = place + 1, count = count, skus = skus, units = units, slots = slots, tail = sub(text, 2) }
    parsed[text] = order
    distinct[#distinct + 1] = order
  end
end

local lane = call('HMGET', KEYS[1], unpack(fields))
local length = call('XLEN', KEYS[2])
seq = read_sequence(lane[1])

-- Per sale: `stale`, or `gate` (the answer to every request that is not a replay) or neither; `head` of a new entry.
local sales = {}
for place = 1, sale_count do
  local packed = lane[place + 1]
  local sale = { stale = true }
  if packed then
    if #packed < 30 then
      corrupt('definition')
    end
    local state, epoch, version, starts_at_ms, ends_at_ms, hold_ms, skus = decode('>BI4I4I8I8I4B', packed)
    if #packed ~= 30 + 2 * skus or state > 3 then
      corrupt('definition')
    end
    -- State 3, closed for recovery, is stale whatever the edge believes: records may be missing.
    if state ~= 3 and epoch == tonumber(ARGV[4 + 3 * place]) and version == tonumber(ARGV[5 + 3 * place]) then
      sale.stale = false
      sale.skus = skus
      sale.packed = packed
      sale.head = pack('>BBI2I4I6I6I6', 2, 0, 1, epoch, now_ms, now_ms + hold_ms, now_ms)
      if state == 2 or now_ms >= ends_at_ms then
        sale.gate = ENDED
      elseif state == 1 then
        sale.gate = NOT_OPEN
      elseif now_ms < starts_at_ms then
        sale.gate = NOT_OPEN + 16 * (starts_at_ms - now_ms)
      end
    end
  end
  sales[place] = sale
end

local available, reserved = {}, {}
for i = 1, #distinct do
  local order = distinct[i]
  local sale = sales[order.place]
  order.sale = sale
  if not sale.stale then
    local limits, purchases = {}, ''
    local fresh_fits = true
    for line = 1, order.count do
      local sku, quantity, slot = order.skus[line], order.units[line], order.slots[line]
      if sku >= sale.skus then
        malformed('the sale has no such SKU')
      end
      local high, low = byte(sale.packed, 31 + 2 * sku, 32 + 2 * sku)
      local limit = high * 256 + low
      if limit == 0 then
        limit = 65535 -- what a purchase counter holds
      end
      limits[line] = limit
      fresh_fits = fresh_fits and quantity <= limit
      purchases = purchases .. char(sku, 0, quantity)
      if not available[slot] then
        local stock = lane[slot]
        if not stock or #stock ~= 28 then
          corrupt('stock')
        end
        available[slot], reserved[slot] = decode('>I4I4', stock)
      end
    end
    order.limits, order.fresh_fits = limits, fresh_fits
    order.fresh_state = tat_of_fresh .. purchases
  end
end
