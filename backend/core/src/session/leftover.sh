t=podbay-$2$1
a() { case "$g " in *" $1 "*) ;; *) g="$g $1";; esac; }
m() {
for e in /proc/[0-9]*/stat; do
IFS= read -r l <"$e" || continue
set -- ${l##*) }
[ "$2" = "$p" ] && a "-$3"
[ "$4" = "$p" ] && [ "$6" -gt 1 ] && a "-$6"
done
}
for d in /proc/[0-9]*; do
p=${d#/proc/}
while IFS= read -r l || [ -n "$l" ]; do case $l in *"$t"*)
g=
if kill -0 "-$p"; then a "-$p"; else a "$p"; fi
for s in HUP TERM KILL; do
m
for x in $g; do kill -"$s" "$x"; done
for i in 1 2 3 4 5; do
n=
for x in $g; do kill -0 "$x" && n=1; done
[ "$n" ] || break 2
sleep 1
done
done
break;; esac; done <"$d/cmdline"
done 2>/dev/null
:
