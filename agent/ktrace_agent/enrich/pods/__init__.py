# SPDX-License-Identifier: Apache-2.0
"""The pod and container of a cgroup."""
