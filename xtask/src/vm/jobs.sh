#!/bin/busybox sh
# The jobs of a guest, one a line of the file given: name, seconds, command. cargo xtask vm reads what it prints.
b=/bin/busybox
# On a line of its own: systemd resets the terminal before.
echo
echo "@@boot $($b uname -r)"
while IFS='|' read -r name limit command; do
    echo "@@begin $name"
    $b timeout -s KILL "$limit" /bin/busybox sh -c "$command" </dev/null 2>&1
    status=$?
    read -r now _ </proc/uptime
    echo
    echo "@@end $name $status $now"
done <"$1"
echo "@@done"
