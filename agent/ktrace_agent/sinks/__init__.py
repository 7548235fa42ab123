# SPDX-License-Identifier: Apache-2.0
"""Destinations of sealed bundles: delivered and verified."""
