-- ARGV: epoch, the name of a mark's list, and of each record: the owner's list that it is on, its id, the
-- revision that was in front of it (or '' where there is nothing to write), the one to put there, its end,
-- and the record. Takes them off the list, and the mark away if there are no more.

local name = ARGV[2]
local owners = {}
for n = 3, #ARGV, 6 do
  local owner, id, before, after, ends, record = unpack(ARGV, n, n + 5)
  if before ~= '' and is_still(id, before) then
    call('SET', record_of(id), after .. ' ' .. record)
    set_end(id, ends)
  end
  call('SREM', worklist(name, owner), id)
  owners[owner] = true
end
for owner in pairs(owners) do
  strike_owner(name, owner)
end

local marks = call('GET', MARKS)
if marks and call('EXISTS', worklist(name)) == 0 then
  local left = {}
  for line in string.gmatch(marks, '[^\n]+') do
    if cjson.decode(line)[2] ~= name then
      left[#left + 1] = line
    end
  end
  if #left == 0 then
    call('DEL', MARKS)
  else
    call('SET', MARKS, table.concat(left, '\n'))
  end
end
return 0
