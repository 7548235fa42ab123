# SPDX-License-Identifier: Apache-2.0
"""What people read of a capture: models in, rich renderables out."""
