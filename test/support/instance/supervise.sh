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
		ip netns exec "$namespace" chroot "$root" "$tables" -w -F
		ip netns exec "$namespace" chroot "$root" "$tables" -w -X
	done
}

for argument in "$@"; do
	case $argument in --directory=*) root=${argument#--directory=} ;; esac
done

while [ ! -e "$given_up" ]; do
	(
		# Every instance has groups of its own: in a shared one, two systemds would take each other's services for theirs.
		for group in $groups; do
			mkdir -p "$group" && echo 0 >"$group/cgroup.procs" || exit 1
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
done
