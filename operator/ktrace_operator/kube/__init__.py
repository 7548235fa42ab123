# SPDX-License-Identifier: Apache-2.0
"""The API server: requests, the Lease, the pace of writes."""
