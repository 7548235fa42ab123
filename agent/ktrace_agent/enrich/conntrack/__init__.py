# SPDX-License-Identifier: Apache-2.0
"""Connection tracking (conntrack): dumped while a capture runs, searched by tuple after it."""
