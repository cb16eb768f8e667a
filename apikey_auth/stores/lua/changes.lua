-- ARGV: epoch, and what a follower knows: an epoch, a revision; then the most ids. Answers the epoch, the
-- revision, the floor, and the ids that changed since.

local _, since_epoch, since, most = unpack(ARGV)
local state = call('HMGET', STATE, 'epoch', 'revision', 'floor')
if state[1] == since_epoch and tonumber(since) < tonumber(state[2]) then
  state[4] = call('ZRANGEBYSCORE', NAMESPACE .. 'changed', '(' .. since, '+inf', 'LIMIT', 0, most)
else
  state[4] = {}
end
return state
