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
_podbay_e() { for _podbay_i in 1 2 3; do printf '\036%s=%s;' "$_podbay_k" "$_podbay_s" && return; sleep 1; done; }
[ -t 3 ] || _podbay_e >&3
_podbay_e
case $_podbay_w$_podbay_s in
0|r0) exit 213;;
213|r213) exit 0;;
q137) ;;
q*) sleep 10 >/dev/null 3>&- & wait;;
esac
exit "$_podbay_s"
