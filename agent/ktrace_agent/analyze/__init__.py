# SPDX-License-Identifier: Apache-2.0
"""SQL over the tables of a recording, models out; no other input or output."""
