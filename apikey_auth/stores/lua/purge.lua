-- ARGV: epoch, and of each record: its id, its owner, the revision that was in front of it when it was found
-- dead. Answers how many it deleted.

call('HSET', STATE, 'floor', advance())
local deleted = 0
for n = 2, #ARGV, 3 do
  local id, owner, settled = unpack(ARGV, n, n + 2)
  if is_still(id, settled) then
    count_out(owner, id)
    call('DEL', record_of(id), NAMESPACE .. 'used:' .. id)
    call('ZREM', NAMESPACE .. 'ids:' .. owner, id)
    for _, index in ipairs({'ids', 'ends', 'changed'}) do
      call('ZREM', NAMESPACE .. index, id)
    end
    deleted = deleted + 1
  end
end
return deleted
