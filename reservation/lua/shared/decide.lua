-- The decision on one request, in the order given in docs/redis-layout.md. Reads only.
-- The caller keeps the effects of the earlier requests up to date: `states` (user hash key -> state after this batch),
-- `accepted` (their number), `places` and `records` (of each accepted request).
local RECORDS_MAX = 1000 -- of one user in one sale; a batch may pass it by its own requests
local states, places, records = {}, {}, {}
local accepted = 0

-- The lines of a record or request as sorted numbers: the same content in another order is the same request.
local function canonical(lines)
  local pairs_of = {}
  for line = 1, #lines / 2 do
    local sku, quantity = byte(lines, 2 * line - 1, 2 * line)
    pairs_of[line] = sku * 256 + quantity
  end
  sort(pairs_of)
  return concat(pairs_of, ' ')
end

local function same_lines(a, b)
  return a == b or (#a == #b and canonical(a) == canonical(b))
end

-- The purchase counters with an order of this kind added; nil when a limit forbids it.
local function add_purchases(purchases, kind)
  local lines, base = lines_of[kind], base_of[kind]
  for line = 1, lines.count do
    local sku, total, at = lines.skus[line], lines.units[line], nil
    for place = 1, #purchases, 3 do
      if byte(purchases, place) == sku then
        local high, low = byte(purchases, place + 1, place + 2)
        total = total + high * 256 + low
        at = place
        break
      end
    end
    if total > limit_at[base + line] then
      return nil
    end
    local counter = char(sku, floor(total / 256), total % 256)
    if at then
      purchases = sub(purchases, 1, at - 1) .. counter .. sub(purchases, at + 3)
    else
      purchases = purchases .. counter
    end
  end
  return purchases
end

-- The answer where the lane has too few units. In a sale of many lanes other lanes may have them: then the wanted
-- quantities are noted in `wanted` by slot, unless the lane has noted as many before.
local wanted, is_wanted = {}, false
local function shortage(kind)
  local base, units = base_of[kind], lines_of[kind].units
  for line = 1, #units do
    local slot = slot_at[base + line]
    local left = byte(lane[1 + sale_count + slot], 29)
    if available[slot] < units[line] and (not left or left < units[line]) then
      return SOLD_OUT
    end
  end
  for line = 1, #units do
    local slot = slot_at[base + line]
    if available[slot] < units[line] and (wanted[slot] or byte(lane[1 + sale_count + slot], 30)) < units[line] then
      wanted[slot], is_wanted = units[line], true
    end
  end
  return UNITS_ELSEWHERE
end

-- The answer to request `i` (from 0); for ACCEPTED also the user's new state and the order's kind.
local function decide(i)
  local at = first + 3 * i
  local kind = kind_of[ARGV[at + 1]]
  local place = place_of[kind]
  if not definition_of[place] then
    return STALE
  end

  local user, key = KEYS[3 + 2 * i], ARGV[at]
  if key == STATE then
    malformed('field')
  end
  local known = call('HMGET', user, STATE, key)
  local state, record = known[1], known[2]
  local changed = states[user]
  if changed then
    state = changed
    for j = 1, accepted do
      local other = places[j]
      if KEYS[3 + 2 * other] == user and ARGV[first + 3 * other] == key then
        record = records[j]
      end
    end
  end
  if record then
    if #record < 23 then
      corrupt('record')
    end
    return same_lines(sub(record, 22), lines_of[kind].tail) and record or KEY_REUSED
  end

  local gate = gate_of[place]
  if gate then
    return gate
  end

  local next_state
  if state then
    if not is_state(state) then
      corrupt('user')
    end
    local tat = decode('>I7', state)
    if tat < now_us then
      tat = now_us
    elseif tat > now_us + ahead_us_most then
      tat = now_us + ahead_us_most -- the clock went back: no one waits for longer than after a burst
    end
    local wait_us = tat - now_us - ahead_us_max
    if wait_us > 0 then
      return RATE_LIMITED + 16 * ceil(wait_us / 1000)
    end
    local purchases = add_purchases(sub(state, ARRIVAL_LENGTH + 1), kind)
    -- Cancelled orders leave their records: without a bound, ordering and cancelling in a loop would fill the memory.
    if not purchases or call('HLEN', user) > RECORDS_MAX then
      return PURCHASE_LIMIT
    end
    next_state = pack('>I7', tat + interval_us) .. purchases
  else
    if not fits_fresh[kind] then
      return PURCHASE_LIMIT
    end
    next_state = lines_of[kind].fresh_state
  end

  local base, units = base_of[kind], lines_of[kind].units
  for line = 1, #units do
    if available[slot_at[base + line]] < units[line] then
      return shortage(kind)
    end
  end
  if length + accepted >= length_max then
    return STREAM_FULL
  end
  return ACCEPTED, next_state, kind
end
