# Runs the kernel, and runs it again when `hold.sh` requests a restart. In all other cases it exits with the kernel's
# exit code. Arguments: a writable folder, and the kernel's command.
place=$1
shift
trap 'woken=1 stop=1; kill -TERM "$kernel" 2> /dev/null' TERM
# The kernel handles SIGINT itself.
trap 'woken=1' INT
while :; do
    "$@" &
    kernel=$!
    echo "$kernel $$" > "$place/running"
    [ -z "$stop" ] || kill -TERM "$kernel"
    # A signal interrupts the wait, not the kernel. `wait` for a process that was already waited for returns 127.
    code=127 woken=1
    while [ "$woken" ]; do
        woken=
        wait "$kernel"
        status=$?
        [ "$status" = 127 ] || code=$status
    done
    holder=
    [ "$stop" ] || { read -r holder < "$place/holder"; } 2> /dev/null
    [ "$holder" ] && kill -0 "$holder" 2> /dev/null || exit "$code"
    rm -f "$place/holder"
    # Opened for reading and writing, the pipe does not block.
    echo "$code" 1<> "$place/ended"
    # Blocks until `hold.sh` ends, because it received "go" or its input closed.
    read -r go < "$place/again"
    [ -z "$stop" ] || exit "$code"
done
