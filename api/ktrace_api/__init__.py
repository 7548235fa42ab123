# SPDX-License-Identifier: Apache-2.0
"""What the operator, the agent and their users say to each other: models only."""

__version__ = "0.1.0"
