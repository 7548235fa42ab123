#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs the Debian or Ubuntu packages that a target of the Makefile needs, then
# .venv from requirements/dev.lock. Prints what it installs and never asks. If nothing
# changed since the last run, it ends at once.
#
#   scripts/bootstrap.sh build     compilers, libbpf, .venv
#   scripts/bootstrap.sh static    also the tools that build dist/ktrace-static
#   scripts/bootstrap.sh test      also the tools of the tests of the real kernel
#   scripts/bootstrap.sh kernels   test, and what builds and boots arm64
#   scripts/bootstrap.sh cluster   test, and the parts of a Kubernetes on this machine
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # an ordinary user's PATH lacks bpftool and nft
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
		die "'$*' needs root, and sudo is missing: run it as root, then start again"
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

# The compiler itself searches for headers: folders differ between releases.
has_header() { echo "#include <$1>" | cc -E -x c - >/dev/null 2>&1; }

has_bpftool() { bpftool version >/dev/null 2>&1; }

bpftool_package() {
	# Not grep -q: it exits early, and under pipefail apt-cache's SIGPIPE would count as a no.
	if apt-cache show bpftool 2>/dev/null | grep '^Filename:' >/dev/null; then
		echo bpftool
	else
		echo linux-tools-common linux-tools-generic # Ubuntu up to 24.04
	fi
}

has_netavark() { [ -x /usr/lib/podman/netavark ] || [ -x /usr/libexec/podman/netavark ]; }

# Since 1.30 buildah needs it for every build, even one without a network. Debian's package only
# recommends it.
needs_netavark() {
	local version
	has dpkg || return 1
	version=$(dpkg-query -W -f '${Version}' buildah 2>/dev/null) ||
		version=$(apt-cache show buildah 2>/dev/null | awk '/^Version:/ && !v { v = $2 } END { print v }')
	dpkg --compare-versions "${version:-0}" ge 1.30
}

# Prints the packages that are missing for $1 (build, static, test, kernels or cluster).
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
	if [ "$1" = test ] || [ "$1" = kernels ] || [ "$1" = cluster ]; then
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
	if [ "$1" = kernels ]; then
		has qemu-system-aarch64 || echo qemu-system-arm
		has aarch64-linux-gnu-gcc || echo gcc-aarch64-linux-gnu libc6-dev-arm64-cross
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
	has apt-get || die "missing: ${packages[*]} (Debian package names). Install them, then start again"
	say "installing ${packages[*]}"
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -q update >&2
	mapfile -t packages < <(missing_packages "$1" | tr ' ' '\n') # again, with new package lists
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get -q -y --no-install-recommends install "${packages[@]}" >&2
}

check_libbpf() {
	local major
	major=$(echo '#include <bpf/libbpf_version.h>
LIBBPF_MAJOR_VERSION' | cc -E -P -x c - 2>/dev/null | tail -n 1)
	[ "${major:-0}" -ge "$LIBBPF_MIN" ] 2>/dev/null ||
		die "libbpf is older than $LIBBPF_MIN.0 (Ubuntu 22.04 has 0.5). Build on Debian 12, Ubuntu 24.04 or newer and copy dist/ktrace-static to this machine"
}

# A change of the lock, the interpreter or the folder creates the environment again. A change of
# the metadata only installs the project itself again.
make_venv() {
	local python want_venv want_links
	python=$(find_python)
	[ -n "$python" ] || die "python3 3.11 or newer is missing: install it, then start again"
	want_venv=$({
		cat "$LOCK"
		"$python" -c 'import sys; print(sys.version, sys.base_prefix)'
		pwd
	} | sha256sum)
	want_links=$(sha256sum <pyproject.toml)
	if [ "$(cat .venv/.made-from 2>/dev/null)" != "$want_venv" ]; then
		say "creating .venv with $python from $LOCK"
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

# Changes with everything that a full check depends on: the inputs, the folder, the interpreter and
# the installed packages.
inputs() {
	{
		sha256sum "$LOCK" pyproject.toml scripts/bootstrap.sh
		stat -L -c '%n %Y %s' /var/lib/dpkg/status "$(command -v python3)" .venv/bin/python
		pwd
	} 2>/dev/null | sha256sum
}

case "${1:-}" in
build | static | test | kernels | cluster) ;;
*) die "usage: scripts/bootstrap.sh build|static|test|kernels|cluster" ;;
esac
stamp=.venv/.ready-$1
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(inputs)" ]; then
	exit 0
fi
[ "$(uname -m)" = x86_64 ] || die "only x86_64 is supported so far, this machine is $(uname -m)"
install_packages "$1"
check_libbpf
make_venv
inputs >"$stamp"
