-- Errors end the script before its first write. CORRUPT: impossible state. MALFORMED: the caller broke the contract.
local function corrupt(detail)
  error({ err = 'CORRUPT ' .. detail })
end

local function malformed(detail)
  error({ err = 'MALFORMED ' .. detail })
end
