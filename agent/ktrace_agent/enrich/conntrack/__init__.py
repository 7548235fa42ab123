# SPDX-License-Identifier: Apache-2.0
"""What connection tracking knows of a tuple."""
