#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# weed.sh FOLDER WEED ARGUMENTS...: seaweedfs that sees FOLDER as /mnt, and a /tmp of its own; to
# be run in a mount namespace of its own. seaweedfs' parts talk over sockets in /tmp that are
# named by their ports alone: two clusters, each with those ports in a network of its own, would
# answer each other's requests.
set -eu
folder=$1
exec 3<"$2" # it may be below the /tmp that is covered here
shift 2
mount --bind "$folder" /mnt
mount -t tmpfs tmpfs /tmp
exec /proc/self/fd/3 "$@"
