#!lua flags=allow-oom
-- A buyer's cancel: a reserved order with a living hold becomes `cancelled`; its units are available again.
--
-- KEYS
--   1 state of the lane
--   2 stream of the lane
--   3 order; ends with the order id
--   4 user hash; ends with sale and user id
-- ARGV
--   1 short sale id
--   2 order id, 16 bytes
--   3 user id, 16 bytes
-- Returns an array: output, the entry at its newest version (empty for NOT_FOUND)
-- Outputs
--   0 DONE
--   1 REPEATED the order was cancelled before
--   2 CONFLICT another final state, or the hold is over
--   3 NOT_FOUND no such order, another user's, or one that a rebuild did not restore

--- @include names
--- @include errors
--- @include transitions
--- @include change

local entry, status, expires_at_ms = read_order()
if not entry or sub(entry, 43, 58) ~= ARGV[3] then
  return { NOT_FOUND, '' }
end
if status == CANCELLED then
  return { REPEATED, entry }
end
if status ~= RESERVED or now_ms >= expires_at_ms then
  return { CONFLICT, entry }
end
return change_order(entry, CANCELLED)
