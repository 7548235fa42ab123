#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what a target of the Makefile needs and this machine lacks: Debian or
# Ubuntu packages, then .venv from requirements/dev.lock. Says what it installs,
# asks nothing, does nothing when all is there.
#
#   scripts/bootstrap.sh build     compilers, libbpf, .venv
#   scripts/bootstrap.sh static    also what dist/ktrace-static is made with
#   scripts/bootstrap.sh test      also what the tests of the real kernel use
#   scripts/bootstrap.sh cluster   also what a Kubernetes on this machine is made of
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # where a plain user's PATH lacks bpftool and nft
LOCK=requirements/dev.lock
LIBBPF_MIN=1

say() { echo "ktrace: $*" >&2; }
die() {
	say "$*"
	exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

as_root() {
	if [ "$(id -u)" -eq 0 ]; then
		"$@"
	elif has sudo; then
		sudo "$@"
	else
		die "'$*' needs root, and there is no sudo: run it as root, then start again"
	fi
}

# The first interpreter that is new enough; CI puts its own first on PATH.
find_python() {
	local name
	for name in python3 python3.13 python3.12 python3.11; do
		if has "$name" && "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
			command -v "$name"
			return
		fi
	done
}

has_clang() {
	local name
	for name in clang clang-{21..14}; do
		has "$name" && return
	done
	return 1
}

# Headers are looked for by the compiler itself: folders differ between releases.
has_header() { echo "#include <$1>" | cc -E -x c - >/dev/null 2>&1; }

has_bpftool() { bpftool version >/dev/null 2>&1; }

bpftool_package() {
	# Not grep -q: it leaves early, and under pipefail apt-cache's SIGPIPE would be a no.
	if apt-cache show bpftool 2>/dev/null | grep '^Filename:' >/dev/null; then
		echo bpftool
	else
		echo linux-tools-common linux-tools-generic # Ubuntu up to 24.04
	fi
}

has_netavark() { [ -x /usr/lib/podman/netavark ] || [ -x /usr/libexec/podman/netavark ]; }

# From 1.30 on buildah looks for it before any build, also before one without a network; Debian's
# package only recommends it.
needs_netavark() {
	local version
	has dpkg || return 1
	version=$(dpkg-query -W -f '${Version}' buildah 2>/dev/null) ||
		version=$(apt-cache show buildah 2>/dev/null | awk '/^Version:/ && !v { v = $2 } END { print v }')
	dpkg --compare-versions "${version:-0}" ge 1.30
}

# Prints the packages that are missing for $1 (build, static, test or cluster).
missing_packages() {
	local python
	has cc || echo gcc libc6-dev
	has make || echo make
	has_clang || echo clang
	{ has cc && has_header bpf/libbpf.h && has_header linux/types.h; } || echo libbpf-dev
	python=$(find_python)
	if [ -z "$python" ]; then
		echo python3 python3-venv
	elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
		echo python3-venv
	fi
	if [ "$1" != build ]; then
		has zstd || echo zstd
		{ has cc && has_header zstd.h; } || echo libzstd-dev
	fi
	if [ "$1" = test ] || [ "$1" = cluster ]; then
		has_bpftool || bpftool_package
		has ip || echo iproute2
		has nft || echo nftables
		has conntrack || echo conntrack
		has jq || echo jq
		has openssl || echo openssl
		has nsenter || echo util-linux
		has mount || echo mount
		has containerd || echo containerd
		has runc || echo runc
		[ -x /usr/lib/cni/ptp ] || echo containernetworking-plugins
		has qemu-system-x86_64 || echo qemu-system-x86
		has busybox || echo busybox-static
	fi
	if [ "$1" = cluster ]; then
		has iptables || echo iptables
		has buildah || echo buildah
		if needs_netavark && ! has_netavark; then echo netavark; fi
		has mmdebstrap || echo mmdebstrap
	fi
}

install_packages() {
	local packages
	mapfile -t packages < <(missing_packages "$1" | tr ' ' '\n')
	[ "${#packages[@]}" -gt 0 ] || return 0
	has apt-get || die "missing here: ${packages[*]} (names of Debian's packages): install them, then start again"
	say "installing ${packages[*]}"
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update >&2
	mapfile -t packages < <(missing_packages "$1" | tr ' ' '\n') # now with fresh lists
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get -q -y --no-install-recommends install "${packages[@]}" >&2
}

check_libbpf() {
	local major
	major=$(echo '#include <bpf/libbpf_version.h>
LIBBPF_MAJOR_VERSION' | cc -E -P -x c - 2>/dev/null | tail -n 1)
	[ "${major:-0}" -ge "$LIBBPF_MIN" ] 2>/dev/null ||
		die "libbpf here is older than $LIBBPF_MIN.0 (Ubuntu 22.04 has 0.5): build on Debian 12, Ubuntu 24.04 or newer and copy dist/ktrace-static here"
}

# The environment is made anew when the lock, the interpreter or the folder change;
# new metadata only lay the project's own links again.
make_venv() {
	local python want_venv want_links
	python=$(find_python)
	[ -n "$python" ] || die "no python3 of 3.11 or newer here: install one, then start again"
	want_venv=$({
		cat "$LOCK"
		"$python" -c 'import sys; print(sys.version, sys.base_prefix)'
		pwd
	} | sha256sum)
	want_links=$(sha256sum <pyproject.toml)
	if [ "$(cat .venv/.made-from 2>/dev/null)" != "$want_venv" ]; then
		say "making .venv with $python from $LOCK"
		rm -rf .venv
		"$python" -m venv .venv
		pip_install --require-hashes -r "$LOCK"
		echo "$want_venv" >.venv/.made-from
	fi
	if [ "$(cat .venv/.linked-from 2>/dev/null)" != "$want_links" ]; then
		pip_install --no-deps --no-build-isolation -e .
		echo "$want_links" >.venv/.linked-from
	fi
}

pip_install() { .venv/bin/python -m pip install -q --disable-pip-version-check "$@"; }

case "${1:-}" in
build | static | test | cluster) ;;
*) die "usage: scripts/bootstrap.sh build|static|test|cluster" ;;
esac
[ "$(uname -m)" = x86_64 ] || die "only x86_64 is supported so far, this is $(uname -m)"
install_packages "$1"
check_libbpf
make_venv
