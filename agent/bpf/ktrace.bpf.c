// SPDX-License-Identifier: GPL-2.0-only
/*
 * The BPF programs of all hooks in one CO-RE object. They record metadata only:
 * no program reads the data that sockets carry.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "events.h"
#include "kernel.bpf.h"
#include "maps.bpf.h"
#include "task.bpf.h"
#include "sock.bpf.h"
#include "emit.bpf.h"
#include "flow.bpf.h"
#include "owner.bpf.h"
#include "datagram.bpf.h"
#include "calls.bpf.h"
#include "change.bpf.h"
#include "connect.bpf.h"
#include "tcp_state.bpf.h"
#include "retransmit.bpf.h"
#include "connect_call.bpf.h"
#include "accept.bpf.h"
#include "udp.bpf.h"
#include "send_recv.bpf.h"
#include "inventory.bpf.h"

/* bpf_probe_read_*(), bpf_get_current_task_btf() and bpf_seq_write() are GPL-only. */
char LICENSE[] SEC("license") = "GPL";
