-- ARGV: epoch, and of each record: its id, its owner, the revision that was in front of it when it was found
-- dead. Answers how many it deleted.

call('HSET', STATE, 'floor', advance())
local generation = call('HGET', STATE, 'generation')
local ids, names, owners, unrevoked = {}, {}, {}, 0
for n = 2, #ARGV, 3 do
  local id, owner, settled = unpack(ARGV, n, n + 2)
  if is_still(id, settled) then
    unrevoked = unrevoked + call('SREM', worklist(generation, owner), id)
    call('ZREM', NAMESPACE .. 'ids:' .. owner, id)
    owners[owner] = true
    ids[#ids + 1] = id
    names[#names + 1] = record_of(id)
    names[#names + 1] = NAMESPACE .. 'used:' .. id
  end
end

if #ids > 0 then
  call('DEL', unpack(names))
  for _, index in ipairs({'ids', 'ends', 'changed'}) do
    call('ZREM', NAMESPACE .. index, unpack(ids))
  end
  call('HINCRBY', STATE, 'unrevoked', -unrevoked)
  for owner in pairs(owners) do
    strike_owner(generation, owner)
  end
end
return #ids
