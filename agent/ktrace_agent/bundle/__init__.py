# SPDX-License-Identifier: Apache-2.0
"""A bundle: sealed, read back, queried."""
