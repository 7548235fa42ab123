# SPDX-License-Identifier: Apache-2.0
"""The operator: from a TraceSnapshot to agent pods, and from their results to its status."""
