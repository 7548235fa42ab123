# SPDX-License-Identifier: Apache-2.0
"""Timeouts of requests to the API server, in seconds."""

CONNECT_SECONDS, WRITE_SECONDS = 3.0, 5.0
LONGEST_WRITE_SECONDS = CONNECT_SECONDS + WRITE_SECONDS
"""A write is sent only while this replica holds the Lease for at least this long, so that the
write ends before another replica can acquire it (kube/lease.py). settings.py refuses a Lease that
is too short for that."""
