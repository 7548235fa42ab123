#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# dist/ktrace: runs the checkout that it was built in.
here=$(CDPATH='' cd -- "$(dirname -- "$(readlink -f -- "$0")")/.." && pwd) || exit 1
if [ ! -x "$here/.venv/bin/ktrace" ]; then
	echo "ktrace: $here/.venv is missing: run \`make build\` there" >&2
	exit 1
fi
exec "$here/.venv/bin/ktrace" "$@"
