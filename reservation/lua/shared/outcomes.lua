-- domain.outcomes.Outcome; an argument is added as argument * 16.
local ACCEPTED = 0
local KEY_REUSED = 2
local STALE = 3
local NOT_OPEN = 4
local ENDED = 5
local RATE_LIMITED = 6
local PURCHASE_LIMIT = 7
local SOLD_OUT = 8
local HAS_STOCK = 9
local STREAM_FULL = 10
local UNITS_ELSEWHERE = 11
