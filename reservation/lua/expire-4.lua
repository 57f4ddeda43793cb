#!lua flags=allow-oom
-- Collects a hold past its time: a reserved order becomes `expired`; its units are available again.
--
-- KEYS
--   1 state of the lane
--   2 stream of the lane
--   3 order; ends with the order id
--   4 user hash; ends with sale and user id
-- ARGV
--   1 short sale id
--   2 order id, 16 bytes
-- Returns an array: output, the entry at its newest version (empty for NOT_FOUND)
-- Outputs
--   0 DONE
--   1 REPEATED the order was expired before
--   2 CONFLICT another final state
--   3 NOT_FOUND no such order, or one that a rebuild did not restore
--   4 NOT_DUE the hold still lives

--- @include names
--- @include errors
--- @include transitions
--- @include change

local entry, status, expires_at_ms = read_order()
if not entry then
  return { NOT_FOUND, '' }
end
if status == EXPIRED then
  return { REPEATED, entry }
end
if status ~= RESERVED then
  return { CONFLICT, entry }
end
if now_ms < expires_at_ms then
  return { NOT_DUE, entry }
end
return change_order(entry, EXPIRED)
