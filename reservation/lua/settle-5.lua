#!lua flags=allow-oom
-- A payment: a reserved order with a living hold becomes `paid`; its units move from reserved to paid. An order that is
-- found gets its mark with the answer, so that its next reader looks for the payment in the shard.
--
-- KEYS
--   1 state of the lane
--   2 stream of the lane
--   3 order; ends with the order id
--   4 user hash; ends with sale and user id
--   5 mark of the order's payments; ends with the order id
-- ARGV
--   1 short sale id
--   2 order id, 16 bytes
--   3 life of the mark in seconds
-- Returns an array: output, the entry at its newest version (empty for NOT_FOUND)
-- Outputs
--   0 DONE
--   1 REPEATED the order was paid before
--   2 CONFLICT another final state, or the hold is over
--   3 NOT_FOUND no such order, or one that a rebuild did not restore

--- @include names
--- @include errors
--- @include transitions
--- @include change

if sub(KEYS[5], -16) ~= order_id or not tonumber(ARGV[3]) then
  malformed('mark')
end
local entry, status, expires_at_ms = read_order()
if not entry then
  return { NOT_FOUND, '' }
end
local answer
if status == PAID then
  answer = { REPEATED, entry }
elseif status ~= RESERVED or now_ms >= expires_at_ms then
  answer = { CONFLICT, entry }
else
  answer = change_order(entry, PAID)
end
if answer[1] ~= NOT_FOUND then
  call('SET', KEYS[5], '', 'EX', ARGV[3])
end
return answer
