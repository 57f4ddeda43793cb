#!lua flags=allow-oom
-- Replaces a sale's definition in a lane by a newer version: state and window. Runs with full memory, which must not
-- keep a sale open.
--
-- KEYS
--   1 state of the lane
-- ARGV
--   1 short sale id
--   2 packed definition
-- Returns an integer
-- Outputs
--   1 REPLACED
--   0 KEPT the lane has this version or a newer one
--   -1 UNKNOWN the lane does not know the sale, has another epoch, or has closed the sale for recovery

--- @include names
--- @include errors

local field, definition = 'd:' .. ARGV[1], ARGV[2]
if #definition < 30 or #definition ~= 30 + 2 * byte(definition, 30) or byte(definition, 1) > 3 then
  malformed('definition')
end
local known = call('HGET', KEYS[1], field)
if not known then
  return -1
end
if #known < 30 then
  corrupt('definition')
end
local state_known, epoch_known, version_known = decode('>BI4I4', known)
local _, epoch, version = decode('>BI4I4', definition)
if epoch ~= epoch_known or state_known == 3 then
  return -1 -- a sale that is closed for recovery is only ever rebuilt
end
if version <= version_known then
  return 0
end
if sub(definition, 26) ~= sub(known, 26) then
  malformed('hold time and SKUs of a published sale never change')
end
call('HSET', KEYS[1], field, definition)
return 1
