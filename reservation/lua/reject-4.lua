#!lua flags=allow-oom
-- PostgreSQL has no unit for a reserved order: the order becomes `rejected`, also after its hold. Its units do not
-- exist, so they are written off: they leave `reserved` and are never available again.
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
--   1 REPEATED the order was rejected before
--   2 CONFLICT another final state
--   3 NOT_FOUND no such order, or one that a rebuild did not restore

--- @include names
--- @include errors
--- @include transitions
--- @include change

local entry, status = read_order()
if not entry then
  return { NOT_FOUND, '' }
end
if status == REJECTED then
  return { REPEATED, entry }
end
if status ~= RESERVED then
  return { CONFLICT, entry }
end
return change_order(entry, REJECTED)
