# SPDX-License-Identifier: Apache-2.0
"""Terminal output for people: models in, rich renderables out."""
