# SPDX-License-Identifier: Apache-2.0
"""Decides what to do next for a snapshot. Pure functions: no memory, no I/O."""
