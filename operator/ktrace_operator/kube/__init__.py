# SPDX-License-Identifier: Apache-2.0
"""Access to the API server: requests, the Lease, the rate limit of writes."""
