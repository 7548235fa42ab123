# SPDX-License-Identifier: Apache-2.0
"""Which pod and container a cgroup is."""
