#!lua
-- Decides a batch of order requests of one lane and writes the accepted ones: all or, after an error, none.
--
-- Two phases: decide everything (reads only), then write. The first write is an XADD, which fails when the sequence
-- went back; no write after it can fail.
--
-- KEYS
--   1 state of the lane
--   2 stream of the lane
--   3 + 2i user hash of request i, i from 0
--   4 + 2i order of request i; ends with the order id
-- ARGV
--   1 number of requests n, 1..64
--   2 number of sales g, 1..n
--   3 emission interval in microseconds
--   4 burst in requests
--   5 bound of the stream's length
--   6 + 2j short id of sale j, j from 0
--   7 + 2j edition of sale j: epoch and version, 4 bytes each, as in its definition
--   6 + 2g + 3i field of request i: the packed idempotency key
--   7 + 2g + 3i lines: 1 byte number j of the sale, then per line 1 byte SKU index, 1 byte quantity
--   8 + 2g + 3i body of the entry: the part after the order id
-- Returns an array: now_ms, then for each request an integer argument * 16 + output (REPLAYED: the record, a string)
-- Outputs
--   0 ACCEPTED effects were written
--   1 REPLAYED same key, same lines: the apply-once record
--   2 KEY_REUSED same key, other lines
--   3 STALE unknown sale, other epoch or version, or closed for recovery
--   4 NOT_OPEN argument: milliseconds until the sale opens, 0 when paused
--   5 ENDED
--   6 RATE_LIMITED argument: milliseconds to wait
--   7 PURCHASE_LIMIT
--   8 SOLD_OUT
--   10 STREAM_FULL
--   11 UNITS_ELSEWHERE other lanes of the sale may have the units; the lane notes that they are wanted here

--- @include names
--- @include errors
--- @include outcomes
--- @include sequence
--- @include user
--- @include batch
--- @include decide

-- Phase one: decide.
local reply = { now_ms }
local since_ms = now_ms - 1577836800000 -- domain.orders.RECORD_SINCE_MS
if since_ms < 0 or since_ms >= 1099511627776 then
  corrupt('the clock')
end
local reserved_at = pack('>I5', since_ms)
local next_states, entries, orders, sold = {}, {}, {}, {}
for i = 0, requests - 1 do
  local answer, next_state, kind = decide(i)
  reply[i + 2] = answer
  if next_state then
    local body, key_length = ARGV[first + 3 * i + 2], #ARGV[first + 3 * i]
    if #body < 37 + key_length or byte(body, 36) ~= key_length then
      malformed('body')
    end
    local order_key, lines, base = KEYS[4 + 2 * i], lines_of[kind], base_of[kind]
    local order_id = sub(order_key, -16)
    accepted = accepted + 1
    places[accepted] = i
    records[accepted] = order_id .. reserved_at .. lines.tail
    next_states[accepted] = next_state
    states[KEYS[3 + 2 * i]] = next_state
    local head = head_of[place_of[kind]]
    entries[accepted] = head .. order_id .. body
    orders[2 * accepted - 1] = order_key
    -- As `value_of` of the entry: without the key.
    orders[2 * accepted] = head .. sub(body, 1, 35) .. sub(body, 37 + key_length)
    for line = 1, lines.count do
      local slot, quantity = slot_at[base + line], lines.units[line]
      available[slot] = available[slot] - quantity
      reserved[slot] = reserved[slot] + quantity
      sold[slot] = true
    end
  end
end
if accepted == 0 and not is_wanted then
  return reply
end

-- Phase two: write.
--- @include append
local stream = KEYS[2]
for j = 1, accepted do
  local i = places[j]
  append(stream, entries[j])
  call('HSET', KEYS[3 + 2 * i], STATE, next_states[j], ARGV[first + 3 * i], records[j])
end
if accepted > 0 then
  call('MSET', unpack(orders))
end
local changes, count = { 'seq', seq }, 2
for slot = 1, slots do
  if sold[slot] then
    local place = 1 + sale_count + slot
    changes[count + 1] = fields[place]
    changes[count + 2] = pack('>I4I4', available[slot], reserved[slot]) .. sub(lane[place], 9)
    count = count + 2
  end
end
if is_wanted then
  for slot, units in pairs(wanted) do
    local place = 1 + sale_count + slot
    local counters = sold[slot] and pack('>I4I4', available[slot], reserved[slot]) .. sub(lane[place], 9) or lane[place]
    changes[count + 1] = fields[place] -- the later value of a field counts
    changes[count + 2] = sub(counters, 1, 29) .. char(units) .. sub(counters, 31)
    count = count + 2
  end
end
call('HSET', KEYS[1], unpack(changes))
return reply
