# SPDX-License-Identifier: Apache-2.0
"""The running operator: watches, queue, reconciler, probes, and the release before an uninstall."""
