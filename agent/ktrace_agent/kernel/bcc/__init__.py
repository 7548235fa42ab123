# SPDX-License-Identifier: Apache-2.0
"""Programs that bcc compiles on the node, for kernels without BTF (agent/bpf/bcc.bpf.h)."""
