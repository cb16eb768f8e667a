-- ARGV: epoch, and of each record: its id, and when it was used, as text of one width, which sorts as time does.

for n = 2, #ARGV, 2 do
  local id, used = ARGV[n], ARGV[n + 1]
  local last = call('GET', NAMESPACE .. 'used:' .. id)
  if (not last or last < used) and call('EXISTS', record_of(id)) == 1 then
    note_use(id, used)
  end
end
return 0
