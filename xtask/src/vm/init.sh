#!/bin/busybox sh
# The first process of a test guest: mounts, modules, then the jobs of /jobs. cargo xtask vm reads what it prints.
# A word NAME=value of the kernel's command line is in the environment: VM_CGROUP, VM_SYSCTL.
export PATH=/usr/sbin:/usr/bin HOME=/root
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
$b mkdir -p /dev/shm /run/netns /tmp /root
for dir in /run /tmp /dev/shm; do $b mount -t tmpfs tmp $dir; done
$b mkdir -p /run/netns
$b mount -t securityfs sec /sys/kernel/security 2>/dev/null
if [ "$VM_CGROUP" = hybrid ]; then
    $b mount -t tmpfs cgroup /sys/fs/cgroup
    $b mkdir -p /sys/fs/cgroup/unified /sys/fs/cgroup/systemd /sys/fs/cgroup/net_cls
    $b mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    $b mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    $b mount -t cgroup -o net_cls,net_prio cgroup /sys/fs/cgroup/net_cls 2>/dev/null || echo "@@note no net_cls in this kernel"
else
    $b mount -t cgroup2 cgroup2 /sys/fs/cgroup
fi
$b mount -t bpf bpf /sys/fs/bpf
while read -r module; do
    $b insmod "/lib/modules/$module.ko" || echo "@@note cannot load $module"
done </lib/modules/order
[ -n "$VM_SYSCTL" ] && { $b sysctl -w "$VM_SYSCTL" || echo "@@note cannot set $VM_SYSCTL"; }
/usr/bin/ip link set lo up
# From here on all: a program that crashes is an information to the kernel.
echo 7 >/proc/sys/kernel/printk
$b sh /jobs.sh /jobs
$b poweroff -f
