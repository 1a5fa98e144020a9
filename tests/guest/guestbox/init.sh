#!/bin/dash
# The guest's first process: mounts, modules, network; then runs the commands that come over the second serial port.
#
# A command is a line "NUMBER SECONDS BASE64"; its answer, whenever it has ended, is a line "NUMBER EXITCODE BASE64", the
# end of its output if that is long. Kernel messages have the first serial port to themselves.
export PATH=/bin
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /mnt /etc/nvme /sbin /usr/sbin /usr/bin /var
# busybox's own shell prefers its applets to programs, and its `read` loses what it has when a child ends.
/bin/busybox ln -s dash /bin/sh
/bin/busybox --install -s /bin 2>/dev/null
ln -s /bin/modprobe /sbin/modprobe
ln -s /run /var/run
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
mount -t tmpfs none /tmp
mount -t configfs none /sys/kernel/config 2>/dev/null
echo "root:x:0:0:root:/:/bin/sh" >/etc/passwd
ln -s /proc/self/mounts /etc/mtab
for module in virtio_pci virtio_net nvme_tcp crc32c_intel; do modprobe "$module"; done
ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2

port=/dev/ttyS1
stty -F $port raw -echo 115200
answer() { # NUMBER SECONDS BASE64
    echo "$3" | base64 -d >/tmp/$1.sh
    timeout -s KILL "$2" dash /tmp/$1.sh </dev/null >/tmp/$1.out 2>&1
    code=$?
    { printf '%s %s ' "$1" "$code"; tail -c 262144 /tmp/$1.out | base64 | tr -d '\n'; echo; } >/tmp/$1.frame
    flock /tmp/lock cat /tmp/$1.frame >$port
    rm -f /tmp/$1.*
}
exec 9<>$port
echo "0 0 " >&9
while read -r number seconds text <&9; do
    answer "$number" "$seconds" "$text" &
done
poweroff -f
