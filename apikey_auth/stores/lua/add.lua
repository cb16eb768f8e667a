-- ARGV: epoch, id, owner, unrevoked, ends, used, record. Answers whether it was added, and whether there are marks.

local _, id, owner, unrevoked, ends, used, record = unpack(ARGV)
if call('EXISTS', record_of(id)) == 1 then
  return {0, is_marked()}
end
write(revision(), id, owner, unrevoked, ends, record)
note_use(id, used)
return {1, is_marked()}
