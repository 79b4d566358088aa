// What runs on the other end of an SSH connection, as constant texts: arguments travel as positional parameters.

/**
 * Runs a program so that it can't outlive us. sshd closes the pipes of a channel when the channel or the connection
 * goes, and tells the program nothing: one without a terminal would live on. This supervisor watches its own output
 * pipes for "nobody reads any more", hangs up the program's process group, and kills what is left after ten seconds.
 * The program's exit code or signal becomes its own. Perl, because perl-base is part of every Debian and Ubuntu, and a
 * POSIX shell can neither poll a pipe nor tell exit code 143 from SIGTERM.
 *
 * Parameters: bytes of `NAME=value\0` on stdin that come before the program's own input (secrets: they must not stand
 * on a command line), working directory or an empty word, program, its arguments.
 */
export const supervisor = `use strict; no warnings; require IO;
my ($secretBytes, $directory, @command) = @ARGV;
my $secrets = "";
while (length $secrets < $secretBytes) {
	sysread(STDIN, $secrets, $secretBytes - length $secrets, length $secrets) or exit 129;
}
for (split /\\0/, $secrets) { my ($name, $value) = split /=/, $_, 2; $ENV{$name} = $value }
pipe(my $fromChild, my $toParent);
my $child = fork;
defined $child or do { print STDERR "fork: $!\\n"; exit 126 };
if ($child == 0) {
	setpgrp(0, 0);
	my $what = "directory";
	if ($directory eq "" or chdir $directory) { $what = "program"; exec { $command[0] } @command }
	syswrite $toParent, "$what: $!";
	kill "KILL", $$;
}
close $toParent;
for my $name ("HUP", "INT", "TERM") { $SIG{$name} = sub { kill $name, -$child } }
$SIG{CHLD} = sub {};
my $failure = "";
while (1) { my $got = sysread $fromChild, $failure, 4096, length $failure; last if defined $got and $got == 0 }
if ($failure ne "") { print STDERR "comfyume can't start it: $failure\\n"; exit 127 }
open STDIN, "<", "/dev/null";
my ($lost, $deadline);
until (waitpid($child, 1) == $child) {
	if ($lost) { select undef, undef, undef, 0.05; kill "KILL", -$child if time > $deadline; next }
	my @watched = (1, 0, 2, 0);
	IO::Poll::_poll(500, @watched);
	next unless ($watched[1] | $watched[3]) & 0x18;
	$lost = 1; $deadline = time + 10; kill "HUP", -$child;
}
my $status = $?;
while ($lost and kill 0, -$child) { select undef, undef, undef, 0.05; kill "KILL", -$child if time > $deadline }
if (my $signal = $status & 127) { $SIG{$_} = "DEFAULT" for keys %SIG; kill $signal, $$; sleep 1 }
exit($status >> 8);
`

/** How the supervisor says that there is no such program or directory; what follows is the reason. */
export const cannotStart = /^comfyume can't start it: (program|directory): (.*)$/m

/** Exit codes of the scripts below, outside of what their tools return. */
export const scriptCodes = { missing: 44, tooLarge: 45, cutShort: 46 } as const

/**
 * Puts what comes on stdin in place as a whole. The file has its mode and its owner before its first byte.
 * Parameters: path, partial path, mode (octal), owner or an empty word, size in bytes.
 */
export const placeScript = `set -eu
umask 077
set -C; : >"$2"; set +C
trap 'rm -f -- "$2"' EXIT
trap 'exit 129' HUP INT TERM
[ -z "$4" ] || chown -- "$4" "$2"
chmod -- "$3" "$2"
cat >>"$2"
arrived=$(stat -c %s -- "$2")
[ "$arrived" = "$5" ] || { echo "cut short: $arrived of $5 bytes arrived" >&2; exit ${scriptCodes.cutShort}; }
sync -- "$2"
mv -fT -- "$2" "$1"
trap - EXIT
sync -- "$(dirname -- "$1")"
`

/**
 * Prints a file's size in bytes on a line of its own, then its content.
 * Parameters: path, the largest size in bytes or 0 for any.
 */
export const fetchScript = `set -eu
if ! size=$(stat -L -c %s -- "$1" 2>&1); then
	case $size in
	*": No such file or directory" | *": Not a directory") exit ${scriptCodes.missing} ;;
	esac
	printf '%s\\n' "$size" >&2
	exit 1
fi
[ ! -d "$1" ] || { echo "$1: Is a directory" >&2; exit 1; }
[ -r "$1" ] || { echo "$1: Permission denied" >&2; exit 1; }
[ "$2" = 0 ] || [ "$size" -le "$2" ] || exit ${scriptCodes.tooLarge}
printf '%s\\n' "$size"
exec cat -- "$1"
`
