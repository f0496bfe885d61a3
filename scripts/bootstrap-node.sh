#!/bin/sh
# Makes this machine a node that runs QAT workloads in Kata Containers: installs
# kata-qat's programs and units, provisions host, guest and runtime, and starts
# the node daemon. Run it again at any time: it changes only what is not as it
# should be. If the machine must be rebooted in between, it goes on after that by
# itself. It needs root, and no terminal.
set -eu

usage() {
	cat <<'EOF'
usage: bootstrap-node.sh [--dry-run | --uninstall] [option...] [-- argument...]

  --dry-run         show the whole plan and change nothing
  --uninstall       put everything back as it was before, and remove the programs
  --from DIR        directory with the programs kata-qat, kata-qat-full and
                    containerd-shim-kata-qat-v2 (default: beside this script,
                    ../bin and .)
  --host-root DIR   root directory of the machine (default: /); no unit is started
                    in another
  --help            show this

What follows -- is given to "kata-qat provision node", for example
  -- --base /opt/kata/share/kata-containers/kata-containers-initrd.img

Exit codes: 0 done; 1 it failed; 2 with --dry-run: something would be changed, or
the command line is wrong; 3 the machine must be rebooted to go on.
EOF
}

say() { printf '%s\n' "bootstrap-node: $*"; }
fail() {
	printf '%s\n' "bootstrap-node: $*" >&2
	exit 1
}
misused() {
	printf '%s\n' "bootstrap-node: $*: see --help" >&2
	exit 2
}

programs='kata-qat kata-qat-full containerd-shim-kata-qat-v2'
units='kata-qat.service kata-qat-bootstrap.service'

mode=install
from=
root=/
while [ $# -gt 0 ]; do
	case $1 in
	--dry-run) mode=dry-run ;;
	--uninstall) mode=uninstall ;;
	--from | --host-root)
		[ $# -gt 1 ] || misused "$1 wants a directory"
		case $1 in
		--from) from=$2 ;;
		--host-root) root=$2 ;;
		esac
		shift
		;;
	--help | -h)
		usage
		exit 0
		;;
	--)
		shift
		break
		;;
	*) misused "unknown argument $1" ;;
	esac
	shift
done

[ -d "$root" ] || fail "--host-root $root: no such directory"
root=${root%/}
here=$(cd "$(dirname "$0")" && pwd)
bin=$root/usr/local/bin
lib=$root/usr/local/lib/kata-qat
systemd=$root/etc/systemd/system

# systemctl, on the machine itself only.
service() {
	if [ -z "$root" ] && [ -d /run/systemd/system ]; then
		systemctl "$@"
	fi
}

# source_of finds a file that is to be installed.
source_of() {
	for dir in "$@"; do
		if [ -f "$dir/$name" ]; then
			printf '%s\n' "$dir/$name"
			return
		fi
	done
	return 1
}

# put installs a file under its name only when it is another, and whole or not at
# all: a program that runs may be replaced.
put() { # FILE TARGET MODE
	if cmp -s "$1" "$2"; then
		return
	fi
	mkdir -p "$(dirname "$2")"
	cp "$1" "$2.new"
	chmod "$3" "$2.new"
	mv -f "$2.new" "$2"
	say "installed $2"
}

# program_source finds a program: where the user says, or where a release has it,
# or where an earlier run has put it.
program_source() {
	if [ -n "$from" ]; then
		source_of "$from"
	else
		source_of "$here/../bin" "$here" "$bin"
	fi
}

find_programs() {
	for name in $programs; do
		program_source >/dev/null ||
			fail "$name is not in ${from:-$here/../bin or $here}: build it with make, or say where it is with --from"
	done
	name=kata-qat
	program=$(program_source)
}

provision() {
	"$program" --host-root "${root:-/}" provision node "$@"
}

install_files() {
	for name in $programs; do
		put "$(program_source)" "$bin/$name" 755
	done
	program=$bin/kata-qat
	put "$here/$(basename "$0")" "$lib/bootstrap-node.sh" 755
	for name in $units; do
		unit=$(source_of "$here/../deploy/systemd" "$here" "$lib") ||
			fail "the unit $name is not in $here/../deploy/systemd or $here: use the script from a whole release"
		put "$unit" "$lib/$name" 644
	done
	if [ -d "$systemd" ]; then
		put "$lib/kata-qat.service" "$systemd/kata-qat.service" 644
		service daemon-reload
	fi
}

# go_on has the next boot do the rest, or no longer.
go_on() { # yes|no, then the arguments
	unit=$systemd/kata-qat-bootstrap.service
	link=$systemd/multi-user.target.wants/kata-qat-bootstrap.service
	if [ "$1" = no ]; then
		rm -f "$unit" "$link" "$lib/arguments"
		return
	fi
	shift
	if [ ! -d "$systemd" ]; then
		say "this machine has no systemd: run this again after the reboot"
		return
	fi
	put "$lib/kata-qat-bootstrap.service" "$unit" 644
	: >"$lib/arguments"
	for argument in "$@"; do # one a line: none of provision node's has a newline
		printf '%s\n' "$argument" >>"$lib/arguments"
	done
	mkdir -p "$systemd/multi-user.target.wants"
	ln -sf "$unit" "$link"
	service daemon-reload
}

case $mode in
dry-run)
	find_programs
	say "programs from $(dirname "$program") go to $bin, the unit kata-qat.service to $systemd"
	provision --dry-run "$@"
	;;
install)
	[ "$(id -u)" = 0 ] || fail "root is needed: run it with sudo"
	find_programs
	install_files
	# After the reboot that an earlier run asked for, its arguments hold.
	if [ $# -eq 0 ] && [ -f "$lib/arguments" ]; then
		while IFS= read -r argument; do
			set -- "$@" "$argument"
		done <"$lib/arguments"
	fi
	code=0
	provision "$@" || code=$?
	case $code in
	0)
		go_on no
		service enable --now kata-qat.service
		# The programs may be new ones.
		service restart kata-qat.service
		say "this node is ready; kata-qat doctor tells at any time whether it still is"
		;;
	3)
		go_on yes "$@"
		say "reboot this machine: the rest is done after that"
		exit 3
		;;
	*)
		say "not finished: mend what is said above and run this again" >&2
		exit 1
		;;
	esac
	;;
uninstall)
	[ "$(id -u)" = 0 ] || fail "root is needed: run it with sudo"
	find_programs
	go_on no
	service disable --now kata-qat.service || true
	provision --undo "$@" || fail "not everything could be put back, so the programs stay: mend what is said above and run this again"
	for name in $programs; do
		rm -f "$bin/$name"
	done
	rm -f "$systemd/kata-qat.service"
	rm -rf "$lib"
	service daemon-reload
	say "kata-qat is gone; /etc/kata-qat/config.toml stays if there is one"
	;;
esac
