#!lua flags=allow-oom
-- Closes one sale of the lane, or all, for recovery: no order, cancel, payment, expiry or restock until `reopen-3`.
-- Raises the lane's sequence to the newest one known elsewhere and to the stream's, so that no number is given twice.
-- Runs with full memory, which must not keep a sale open.
--
-- KEYS
--   1 state of the lane
--   2 stream of the lane
-- ARGV
--   1 least value of the sequence afterwards
--   2 short sale id; empty: every sale, if the sequence is below that value or behind the stream, else none
--   3 epoch: the sale is closed if the lane has an older one
--   4 mark of the rebuild that closes the sale, empty for none
-- Returns an array: output, the sequence before, the sequence afterwards
-- Outputs
--   0 or more: number of sales closed now

--- @include names
--- @include errors
--- @include sequence
--- @include floor

local sale, epoch, mark = ARGV[2], tonumber(ARGV[3]), ARGV[4]
if not epoch or (#sale ~= 22 and (sale ~= '' or mark ~= '')) then
  malformed('sale')
end
local before, seq = read_floor(ARGV[1])
local fields = {}
if sale ~= '' then
  fields[1] = 'd:' .. sale
elseif seq > before then
  for _, field in ipairs(call('HKEYS', KEYS[1])) do
    if sub(field, 1, 2) == 'd:' then
      fields[#fields + 1] = field
    end
  end
end
if seq > before then
  call('HSET', KEYS[1], 'seq', seq)
end
local closed = 0
for _, field in ipairs(fields) do
  local definition = call('HGET', KEYS[1], field)
  if definition and byte(definition, 1) ~= 3 and (sale == '' or decode('>I4', definition, 2) < epoch) then
    call('HSET', KEYS[1], field, char(3) .. sub(definition, 2))
    closed = closed + 1
  end
end
if mark ~= '' then
  call('HSET', KEYS[1], 'b:' .. sale, mark)
end
return { closed, before, seq }
