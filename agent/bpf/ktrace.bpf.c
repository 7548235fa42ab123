// SPDX-License-Identifier: GPL-2.0-only
/*
 * The BPF programs of all hooks in one CO-RE object. They record metadata only:
 * no program reads the data that sockets carry.
 */
#ifdef KT_BCC
#include "bcc.bpf.h"
#else
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#endif

#include "events.h"
#include "kernel.bpf.h"
#include "era.bpf.h"
#include "maps.bpf.h"
#include "task.bpf.h"
#include "sock.bpf.h"
#include "emit.bpf.h"
#include "flow.bpf.h"
#include "owner.bpf.h"
#include "datagram.bpf.h"
#include "calls.bpf.h"
#include "change.bpf.h"
#include "thread.bpf.h"
#include "copies.bpf.h"

#include "body/connect.bpf.h"
#include "body/tcp_state.bpf.h"
#include "body/retransmit.bpf.h"
#include "body/connect_call.bpf.h"
#include "body/accept.bpf.h"
#include "body/udp.bpf.h"
#include "body/tcp_data.bpf.h"
#include "body/data.bpf.h"

#include "entry/syscalls.bpf.h"
#include "entry/kprobe.bpf.h"
#ifndef KT_BCC
#include "entry/tp_btf.bpf.h"
#include "entry/fexit.bpf.h"
#include "entry/iterators.bpf.h"

/* bpf_probe_read_*(), bpf_get_current_task_btf() and bpf_seq_write() are GPL-only. */
char LICENSE[] SEC("license") = "GPL";
#endif
