-- The requests of a batch and the lane's state for them, read once. In the most expensive batch each order is of
-- another sale and bears this cost alone: hence plain arrays instead of a table per sale, and no redundant string.
--
-- A kind is one distinct text of lines: place of the sale, then the lines. A slot is one SKU of one sale. Makes:
-- `requests`, `now_ms`, `now_us`, `length` (of the stream); by text `kind_of`; by kind `lines_of`, `place_of`,
-- `base_of`, `fits_fresh`; by base + line `slot_at`, `limit_at`; by slot `available`, `reserved`, and behind the sales
-- in `fields` and `lane` its name and text; by place of the sale from 1 `definition_of` (none: stale), `gate_of` (the
-- answer to every request that is not a replay), `head_of` (of a new entry).
local seq
local requests, sale_count = tonumber(ARGV[1]), tonumber(ARGV[2])
local interval_us, burst, length_max = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if not (requests and sale_count and interval_us and burst and length_max) then
  malformed('numbers')
end
if requests < 1 or requests > 64 or sale_count < 1 or sale_count > requests or interval_us < 1 or burst < 1 then
  malformed('bounds')
end
if #KEYS ~= 2 + 2 * requests or #ARGV ~= 5 + 2 * sale_count + 3 * requests then
  malformed('counts')
end

local time = call('TIME')
-- Microseconds since 1970 stay below 2^53 until the year 2255: a Lua number holds them exactly.
local now_us = time[1] * 1000000 + time[2]
local now_ms = floor(now_us / 1000)
-- A request is allowed while the arrival time is not further ahead than this.
local ahead_us_max = interval_us * burst - interval_us
-- No arrival time is further ahead than this after a request that was allowed.
local ahead_us_most = interval_us * burst
local tat_of_fresh = pack('>I7', max(now_us + interval_us, now_us))

-- The lines without their sale: `tail` is their text, `suffixes` end the field names of their stock, `fresh_state` is
-- the new state of a user without one.
local function read_lines(tail)
  local count = #tail / 2
  local skus, units, suffixes, fresh_state = {}, {}, {}, tat_of_fresh
  for line = 1, count do
    local sku, quantity = byte(tail, 2 * line - 1, 2 * line)
    for earlier = 1, line - 1 do
      if skus[earlier] == sku then
        malformed('a SKU twice')
      end
    end
    if quantity == 0 then
      malformed('quantity')
    end
    skus[line], units[line], suffixes[line] = sku, quantity, ':' .. sku
    fresh_state = fresh_state .. char(sku, 0, quantity)
  end
  return { tail = tail, count = count, skus = skus, units = units, suffixes = suffixes, fresh_state = fresh_state }
end

-- Many buyers order the same lines: each distinct text of lines is parsed once, and equal lines are resolved once
-- for all sales.
local first = 6 + 2 * sale_count
local kinds, bases, slots = 0, 0, 0
local kind_of, lines_of, place_of, base_of = {}, {}, {}, {}
local slot_at, slot_of, lines_of_tail = {}, {}, {}
local fields, named = { 'seq' }, {}
for place = 1, sale_count do
  local sale = ARGV[4 + 2 * place]
  if named[sale] then
    malformed('a sale twice') -- each would use the whole stock
  end
  named[sale] = true
  fields[place + 1] = 'd:' .. sale
end
for i = first + 1, #ARGV, 3 do
  local text = ARGV[i]
  if not kind_of[text] then
    local place = byte(text, 1)
    if #text < 3 or #text % 2 == 0 or place >= sale_count then
      malformed('lines')
    end
    local tail = sub(text, 2)
    local lines = lines_of_tail[tail]
    if not lines then
      lines = read_lines(tail)
      lines_of_tail[tail] = lines
    end
    kinds = kinds + 1
    kind_of[text], lines_of[kinds], place_of[kinds], base_of[kinds] = kinds, lines, place + 1, bases
    for line = 1, lines.count do
      local name = place * 256 + lines.skus[line]
      local slot = slot_of[name]
      if not slot then
        slots = slots + 1
        slot = slots
        slot_of[name] = slot
        fields[1 + sale_count + slot] = 's:' .. ARGV[6 + 2 * place] .. lines.suffixes[line]
      end
      slot_at[bases + line] = slot
    end
    bases = bases + lines.count
  end
end

local lane = call('HMGET', KEYS[1], unpack(fields))
local length = call('XLEN', KEYS[2])
seq = read_sequence(lane[1])

local definition_of, gate_of, head_of = {}, {}, {}
local head, edition_of_head, hold_of_head
for place = 1, sale_count do
  local packed = lane[place + 1]
  if packed then
    if #packed < 30 then
      corrupt('definition')
    end
    local state, starts_at_ms, ends_at_ms, hold_ms, skus = decode('>BxxxxxxxxI8I8I4B', packed)
    if #packed ~= 30 + 2 * skus or state > 3 then
      corrupt('definition')
    end
    local edition = ARGV[5 + 2 * place]
    -- State 3, closed for recovery, is always stale: records may be missing.
    if state ~= 3 and sub(packed, 2, 9) == edition then
      definition_of[place] = packed
      if edition ~= edition_of_head or hold_ms ~= hold_of_head then
        head = pack('>BBI2I4I6I6I6', 2, 0, 1, decode('>I4', packed, 2), now_ms, now_ms + hold_ms, now_ms)
        edition_of_head, hold_of_head = edition, hold_ms
      end
      head_of[place] = head
      if state == 2 or now_ms >= ends_at_ms then
        gate_of[place] = ENDED
      elseif state == 1 then
        gate_of[place] = NOT_OPEN
      elseif now_ms < starts_at_ms then
        gate_of[place] = NOT_OPEN + 16 * (starts_at_ms - now_ms)
      end
    end
  end
end

local available, reserved, fits_fresh, limit_at = {}, {}, {}, {}
for kind = 1, kinds do
  local packed = definition_of[place_of[kind]]
  if packed then
    local lines, base, fits = lines_of[kind], base_of[kind], true
    for line = 1, lines.count do
      local sku, slot = lines.skus[line], slot_at[base + line]
      local high, low = byte(packed, 31 + 2 * sku, 32 + 2 * sku)
      if not low then
        malformed('the sale has no such SKU')
      end
      local limit = high * 256 + low
      if limit == 0 then
        limit = 65535 -- maximum of a purchase counter
      end
      limit_at[base + line] = limit
      fits = fits and lines.units[line] <= limit
      if not available[slot] then
        local stock = lane[1 + sale_count + slot]
        if not stock or (#stock ~= 28 and #stock ~= 31) then
          corrupt('stock')
        end
        available[slot], reserved[slot] = decode('>I4I4', stock)
      end
    end
    fits_fresh[kind] = fits
  end
end
