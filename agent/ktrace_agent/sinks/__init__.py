# SPDX-License-Identifier: Apache-2.0
"""Where bundles go: deliver, verify, say where."""
