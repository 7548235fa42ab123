# SPDX-License-Identifier: Apache-2.0
"""A recording as tables that SQL can ask."""
