-- Globals as locals: saves a look-up at each use.
local call = redis.call
local byte, char, sub = string.byte, string.char, string.sub
local concat, sort = table.concat, table.sort
local ceil, floor, max = math.ceil, math.floor, math.max
local pack, decode = struct.pack, struct.unpack
