-- The user's hash. The field without a name is the user's state: arrival time, then purchase counters of 3 bytes each.
-- Every other field is a packed idempotency key, which has at least one byte.
local STATE = ''
local ARRIVAL_LENGTH = 7

local function is_state(text)
  return #text >= ARRIVAL_LENGTH and (#text - ARRIVAL_LENGTH) % 3 == 0
end
