# Keeps `keep.sh` from ending with its kernel. Prints "held", then "ended CODE" once the kernel and all processes that
# it started are gone. Reads signal names to send to the kernel, and "go", which starts the kernel again. If standard
# input closes before the kernel has ended, the hold is released. If it closes after that, the kernel is started again.
# Argument: the folder that `keep.sh` writes to.
cd "$1" && read -r kernel keeper < running && rm -f ended again && mkfifo ended again || exit 1
exec 3<> ended 4<> again

session_of() {
    read -r stat < "/proc/$1/stat" && set -- ${stat##*) } && echo "$4"
}

# Kills everything in this container except `keep.sh` and this session.
kill_rest() {
    ours=$(cat /proc/self/cgroup)
    session=$(session_of $$)
    for folder in /proc/[0-9]*; do
        process=${folder#/proc/}
        [ "$process" != "$keeper" ] && [ "$(cat "$folder/cgroup")" = "$ours" ] &&
            [ "$(session_of "$process")" != "$session" ] && kill -9 "$process"
    done 2> /dev/null
}

{
    read -r code <&3
    kill_rest
    echo "ended $code"
} 4>&- &
reader=$!
echo $$ > holder.new && mv holder.new holder && echo held || exit 1
while read -r word; do
    [ "$word" = go ] && exit
    kill -s "$word" "$kernel"
done
rm -f holder
kill "$reader"
