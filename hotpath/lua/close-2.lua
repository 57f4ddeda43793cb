#!lua flags=allow-oom
-- Closes sales of a lane for recovery: no order, cancel, payment, expiry or restock until `reopen-3`. Brings the lane's
-- sequence up to what is known elsewhere and to the stream's, so that no number is given twice. A full memory must not
-- keep a sale open.
--
-- KEYS
--   1 state of the lane
--   2 stream of the lane
-- ARGV
--   1 least value of the sequence afterwards
--   2 mark of the rebuild that closes, empty for none; with a mark, one sale is named
--   3.. short sale ids; none: every sale that the lane knows
-- Returns an array: number of sales closed now, the sequence before, the sequence afterwards
-- Outputs
--   0 and more: number of sales closed now

--- @include names
--- @include errors
--- @include sequence
--- @include floor

local mark = ARGV[2]
local fields = {}
for place = 3, #ARGV do
  if #ARGV[place] ~= 22 then
    malformed('sale')
  end
  fields[#fields + 1] = 'd:' .. ARGV[place]
end
if mark ~= '' and #fields ~= 1 then
  malformed('a rebuild closes one sale')
end
if #fields == 0 then
  for _, field in ipairs(call('HKEYS', KEYS[1])) do
    if sub(field, 1, 2) == 'd:' then
      fields[#fields + 1] = field
    end
  end
end
local before, seq = read_floor(ARGV[1])
if seq > before then
  call('HSET', KEYS[1], 'seq', seq)
end
local closed = 0
for _, field in ipairs(fields) do
  local definition = call('HGET', KEYS[1], field)
  if definition and byte(definition, 1) ~= 3 then
    call('HSET', KEYS[1], field, char(3) .. sub(definition, 2))
    closed = closed + 1
  end
end
if mark ~= '' then
  call('HSET', KEYS[1], 'b:' .. ARGV[3], mark)
end
return { closed, before, seq }
