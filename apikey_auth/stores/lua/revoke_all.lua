-- ARGV: epoch, whose keys ('all' or 'owner'), the owner, what a mark tells (owner, time and reason, as JSON),
-- the most ids to name.
-- Answers how many it revoked, and whether there are marks.
--
-- However many keys there are, none is touched: a mark is written, which readers heed from then on, and the
-- set of what is not revoked becomes the list of the records into which it is still to be written.

local _, whose, owner, told, most = unpack(ARGV)
local all = whose == 'all'
local now = advance()
local generation = call('HGET', STATE, 'generation')
local revoked
if all then
  revoked = tonumber(call('HGET', STATE, 'unrevoked'))
else
  revoked = call('SCARD', worklist(generation, owner))
end
if revoked == 0 then
  return {0, is_marked()}
end

if revoked > tonumber(most) then
  call('HSET', STATE, 'floor', now)
else
  local owners = {owner}
  if all then
    owners = call('SMEMBERS', worklist(generation))
  end
  for _, each in ipairs(owners) do
    local named = {}
    for _, id in ipairs(call('SMEMBERS', worklist(generation, each))) do
      named[#named + 1] = now
      named[#named + 1] = id
    end
    call('ZADD', NAMESPACE .. 'changed', unpack(named))
  end
end

local list = generation
if all then
  call('HSET', STATE, 'generation', now, 'unrevoked', 0)
else
  list = now
  call('RENAME', worklist(generation, owner), worklist(list, owner))
  call('SREM', worklist(generation), owner)
  call('SADD', worklist(list), owner)
  call('HINCRBY', STATE, 'unrevoked', -revoked)
end
local marks = call('GET', MARKS)
local mark = '[' .. now .. ',"' .. list .. '",' .. told .. ']'
call('SET', MARKS, marks and marks .. '\n' .. mark or mark)
return {revoked, 1}
