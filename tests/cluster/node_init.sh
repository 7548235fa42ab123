#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# node_init.sh FOLDER [NAME]: the first process of a machine of the cluster. It prepares
# the namespaces that it was started in, says so by FOLDER/ready, and sleeps. With a
# NAME the machine is a node and has mounts and a hostname of its own.
set -eu

folder=$1
name=${2:-}
echo 1 >/proc/sys/net/ipv4/ip_forward

# What the kubelet insists on is the whole kernel's: a file that already says so is put
# in front of it, the host's value stays.
pretend() {
	[ "$(cat "/proc/sys/$1")" = "$2" ] && return
	file=$folder/sysctl/$(echo "$1" | tr / .)
	echo "$2" >"$file"
	mount --bind "$file" "/proc/sys/$1"
}

if [ -n "$name" ]; then
	echo "$name" >/proc/sys/kernel/hostname
	mkdir -p "$folder/lib/kubelet" "$folder/lib/containerd" "$folder/lib/cni" \
		"$folder/log/pods" "$folder/log/containers" "$folder/sysctl" "$folder/sys"

	# Copies of the host's mounts would keep others' namespaces alive.
	awk '$5 ~ "^/run/" { print $5 }' /proc/self/mountinfo | sort -r |
		while read -r point; do umount -l "$point"; done
	mount -t tmpfs -o mode=755 tmpfs /run
	mkdir -p /run/netns /run/lock
	mount --bind "$folder/lib" /var/lib
	mount --bind "$folder/log" /var/log

	# A sysfs shows the network devices of the namespace it was mounted in.
	mount --rbind /sys "$folder/sys"
	mount -t sysfs sysfs /sys
	for part in fs/cgroup fs/bpf kernel/tracing kernel/debug kernel/security; do
		if mountpoint -q "$folder/sys/$part"; then
			mount --rbind "$folder/sys/$part" "/sys/$part"
		fi
	done
	umount -R -l "$folder/sys"

	pretend vm/overcommit_memory 1
	pretend vm/panic_on_oom 0
	pretend kernel/panic 10
	pretend kernel/panic_on_oops 1
	pretend kernel/keys/root_maxkeys 1000000
	pretend kernel/keys/root_maxbytes 25000000
	mount --make-rshared /
fi

echo "$$" >"$folder/ready"
exec sleep infinity
