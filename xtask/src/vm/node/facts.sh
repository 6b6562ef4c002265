# What a node is made of: cargo xtask vm reads it.
version() { dpkg-query --show --showformat '${Version}' "$1"; }
for package in containerd runc systemd containernetworking-plugins; do
    echo "@@fact $package $(version $package)"
done
[ -e /sys/fs/cgroup/cgroup.controllers ] && echo "@@fact cgroups unified"
grep -q 'SystemdCgroup = true' /etc/containerd/config.toml && echo "@@fact driver systemd"
echo "@@fact architecture $(dpkg --print-architecture)"
echo "@@fact debian $(cat /etc/debian_version)"
