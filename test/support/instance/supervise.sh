#!/bin/sh
# Runs one instance, and starts it again when it reboots. Stays outside of the instance's control groups, so that all
# that is in them can be killed while somebody is left to reap it.
# Arguments: name of the network namespace, the control group directories (separated by spaces), a file whose being there
# means that the instance is given up, nspawn's arguments.
namespace=$1
groups=$2
given_up=$3
shift 3

# What a machine forgets when it reboots, and a network namespace doesn't.
forget_firewall() {
	for tables in iptables ip6tables; do
		for chain in INPUT FORWARD OUTPUT; do ip netns exec "$namespace" chroot "$root" "$tables" -w -P "$chain" ACCEPT; done
		for table in filter nat; do
			ip netns exec "$namespace" chroot "$root" "$tables" -w -t "$table" -F
			ip netns exec "$namespace" chroot "$root" "$tables" -w -t "$table" -X
		done
	done
}

# Docker's bridges, and what hangs on them.
forget_bridges() {
	for bridge in $(ip -n "$namespace" -o link show type bridge | cut -d: -f2); do ip -n "$namespace" link delete "$bridge"; done
}

for argument in "$@"; do
	case $argument in --directory=*) root=${argument#--directory=} ;; esac
done

while [ ! -e "$given_up" ]; do
	(
		# Every instance has groups of its own: in a shared one, two systemds would take each other's services for theirs.
		for group in $groups; do
			mkdir -p "$group" || exit 1
			# A new group has no processors and no memory, and nobody may enter it.
			for set in cpuset.cpus cpuset.mems; do
				[ ! -e "$group/cgroup.clone_children" ] || [ ! -e "$group/$set" ] || cat "$group/../$set" >"$group/$set"
			done
			echo 0 >"$group/cgroup.procs" || exit 1
		done
		exec systemd-nspawn "$@"
	)
	code=$?
	for group in $groups; do
		find "$group" -mindepth 1 -depth -type d -exec rmdir {} + 2>/dev/null
	done
	# 133 is nspawn's word for a reboot.
	[ "$code" -eq 133 ] || exit "$code"
	forget_firewall
	forget_bridges
done
