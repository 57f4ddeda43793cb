-- Errors end the script before its first write. CORRUPT: state that must not be. MALFORMED: the caller broke the contract.
local function corrupt(what)
  error({ err = 'CORRUPT ' .. what })
end

local function malformed(what)
  error({ err = 'MALFORMED ' .. what })
end
