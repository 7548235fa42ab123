# SPDX-License-Identifier: Apache-2.0
"""The commands: what is typed or assigned, and what is answered."""
