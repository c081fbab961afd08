t=podbay-$2$1
for d in /proc/[0-9]*; do
p=${d#/proc/}
while IFS= read -r l || [ -n "$l" ]; do case $l in *"$t"*)
for s in HUP TERM KILL; do
kill -"$s" "-$p" || kill -"$s" "$p"
for i in 1 2 3 4 5; do kill -0 "-$p" || kill -0 "$p" || break 2; sleep 1; done
done
break;; esac; done <"$d/cmdline"
done 2>/dev/null
:
