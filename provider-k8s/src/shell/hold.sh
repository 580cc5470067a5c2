# Keeps `keep.sh` from ending with its kernel. Says "held", then "ended CODE" when the kernel and all that it started is
# gone. Takes the names of signals for the kernel, and "go", which starts it anew. Who goes away before the kernel has
# ended takes the hold with it; who goes away after that has the kernel started.
cd "$1" && read -r kernel keeper < running && rm -f ended again && mkfifo ended again || exit 1
exec 3<> ended 4<> again

session_of() {
    read -r stat < "/proc/$1/stat" && set -- ${stat##*) } && echo "$4"
}

# What is in this container, but for who keeps the kernel and this session.
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
