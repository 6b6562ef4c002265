#!/bin/busybox sh
# The first process of a node: modules, for which the system on the disk has no files, then that system's own.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
$b mount -t devtmpfs dev /dev
while read -r module; do
    $b insmod "/usr/lib/modules/$module.ko" || echo "@@note cannot load $module"
done </usr/lib/modules/order
$b mkdir -p /root
# The names are the kernel's: in the order of QEMU's command line.
$b mount -t ext4 /dev/vda /root && $b mount -t ext4 -o ro /dev/vdb /root/t || echo "@@note no disk"
for dir in proc sys dev; do $b mount --move /$dir /root/$dir; done
exec $b switch_root /root /sbin/init
