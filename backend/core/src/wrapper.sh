trap : INT QUIT TERM
[ -t 0 ] || trap : HUP
_podbay_k=$1 _podbay_w=$2
[ "$3" = 0 ] || stty cols "$3" rows "$4" 2>/dev/null
shift 4
while [ "$1" != -- ]; do command export "$1" 2>/dev/null; shift; done
shift
_podbay_v=
case $_podbay_w in r) printf %s "$_podbay_k+";; esac
case $_podbay_w in ?)
while IFS= read -r _podbay_l || exit 125; do case $_podbay_l in
+*) _podbay_v=$_podbay_v${_podbay_l#+};;
e) _podbay_v=`printf %bx "$_podbay_v"`; command export "${_podbay_v%x}" 2>/dev/null; _podbay_v=;;
a) _podbay_v=`printf %bx "$_podbay_v"`; set -- "$@" "${_podbay_v%x}"; _podbay_v=;;
.) break;;
esac; done;; esac
printf %s "$_podbay_k." || exit 125
exec 3>&2 2>/dev/null
(exec "$@" 2>&3 3>&-)
_podbay_s=$?
trap '' PIPE TTOU
_podbay_o() {
[ /proc/self/fd/1 -ef /proc/self/fd/1 ] || return
set -- /proc/[0-9]*
[ "$#" -le 64 ] || return
for _podbay_i in 1 2; do for _podbay_p in /proc/[0-9]*; do
[ "$_podbay_p" -ef /proc/self ] && continue
[ -r "$_podbay_p/fd" ] || return
for _podbay_f in "$_podbay_p"/fd/*; do
[ "$_podbay_f" -ef /proc/self/fd/1 ] || [ "$_podbay_f" -ef /proc/self/fd/3 ] && return 1
done; done; done
:
}
_podbay_x=';'
case $_podbay_w$_podbay_s in
137|r137|q137) ;;
q*) _podbay_x='!';;
*) if [ -t 3 ] || _podbay_o; then _podbay_x='!'; fi;;
esac
_podbay_e() { for _podbay_i in 1 2 3; do printf '\036%s=%s%s' "$_podbay_k" "$_podbay_s" "$_podbay_x" && return; sleep 1; done; }
[ -t 3 ] || _podbay_e >&3
_podbay_e
case $_podbay_w$_podbay_x in
q!) sleep 10 >/dev/null 3>&- & wait;;
*!) sleep 3 >/dev/null 3>&- & wait;;
esac
case $_podbay_w$_podbay_s in
0|r0) exit 213;;
213|r213) exit 0;;
esac
exit "$_podbay_s"
