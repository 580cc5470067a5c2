# Runs the kernel, and runs it anew where somebody has said that it is to be restarted: `hold.sh` does. However else it
# ends, this ends with its exit code. Called with a folder that this can write and the kernel's command.
place=$1
shift
trap 'woken=1 stop=1; kill -TERM "$kernel" 2> /dev/null' TERM
# The kernel's matter.
trap 'woken=1' INT
while :; do
    "$@" &
    kernel=$!
    echo "$kernel $$" > "$place/running"
    [ -z "$stop" ] || kill -TERM "$kernel"
    # A signal ends the wait, not the kernel; the wait for one that was waited for already says 127.
    code=127 woken=1
    while [ "$woken" ]; do
        woken=
        wait "$kernel"
        said=$?
        [ "$said" = 127 ] || code=$said
    done
    holder=
    [ "$stop" ] || { read -r holder < "$place/holder"; } 2> /dev/null
    [ "$holder" ] && kill -0 "$holder" 2> /dev/null || exit "$code"
    rm -f "$place/holder"
    # Open for both ways, this waits for nobody.
    echo "$code" 1<> "$place/ended"
    # Until it is to go on, or who holds it is gone.
    read -r go < "$place/again"
    [ -z "$stop" ] || exit "$code"
done
