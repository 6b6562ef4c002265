# Makes a machine out of namespaces; run by machine.rs as `sh DIRECTORY/machine.sh enter NAME DIRECTORY`.
set -eu
verb=$1 name=$2 directory=$3

# Mount points of the cgroup hierarchies: v2, and where the layout is hybrid also those of v1.
hierarchies() {
    while read -r _ point type _; do
        case $type in cgroup | cgroup2) echo "$point" ;; esac
    done </proc/mounts
}

case $verb in
enter)
    # In the machine's own cgroup of every hierarchy, so that its cgroup namespace begins there.
    for point in $(hierarchies); do
        mkdir -p "$point/$name"
        # A cpuset without processors takes no process.
        for file in cpuset.cpus cpuset.mems; do
            [ ! -e "$point/$name/$file" ] || [ ! -e "$point/$file" ] || cat "$point/$file" >"$point/$name/$file"
        done
        echo 0 >"$point/$name/cgroup.procs"
    done
    exec unshare --mount --propagation private --pid --fork --kill-child --net --uts --ipc --cgroup --mount-proc \
        sh "$directory/machine.sh" boot "$name" "$directory"
    ;;
boot)
    hostname "$name"
    ip link set lo up
    # Mounts of others, which our copies would keep alive after their owners have removed them.
    while read -r _ point type _; do
        case $type in nsfs | bpf) umount --lazy "$point" ;; esac
    done </proc/mounts
    # The same hierarchies, beginning at the machine's cgroup.
    grep -E ' cgroup2? ' /proc/mounts >"$directory/hierarchies"
    umount --recursive --lazy /sys/fs/cgroup
    mount -t tmpfs -o mode=755 cgroups /sys/fs/cgroup
    while read -r _ point type options _; do
        mkdir -p "$point"
        case $type in
        cgroup2) mount -t cgroup2 none "$point" ;;
        cgroup)
            # Of the options, the controllers; a hierarchy without one has a name.
            what=$(echo "$options" | tr , '\n' | grep -vE '^(rw|relatime|nosuid|nodev|noexec|xattr|release_agent=.*)$' | paste -sd, -)
            case $what in name=*) what=none,$what ;; esac
            mount -t cgroup -o "$what" none "$point"
            ;;
        esac
    done <"$directory/hierarchies"
    # What daemons keep in fixed places belongs to this machine alone.
    mount -t tmpfs -o mode=755 run /run
    mount -t bpf bpf /sys/fs/bpf
    for place in /etc/cni /opt /var/lib; do
        mkdir -p "$directory$place" "$place"
        mount --bind "$directory$place" "$place"
    done
    # kubelet writes these, and they are the whole machine's: it gets files instead.
    for setting in vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys \
        kernel/keys/root_maxbytes; do
        file=$directory/sysctl/$setting
        mkdir -p "${file%/*}"
        cat "/proc/sys/$setting" >"$file"
        mount --bind "$file" "/proc/sys/$setting"
    done
    touch "$directory/ready"
    # As init: whatever loses its parent ends here.
    sleep infinity &
    wait
    ;;
esac
