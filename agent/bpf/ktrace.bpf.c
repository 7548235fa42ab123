// SPDX-License-Identifier: GPL-2.0-only
/*
 * The collector's kernel side: one CO-RE object, all hooks. Metadata only: no
 * program reads a byte of what sockets carry.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#define E2BIG 7
#define EEXIST 17
#ifndef NULL
#define NULL ((void *)0)
#endif

#include "events.h"
#include "maps.bpf.h"
#include "task.bpf.h"
#include "sock.bpf.h"
#include "emit.bpf.h"
#include "owner.bpf.h"
#include "tcp.bpf.h"
#include "calls.bpf.h"
#include "udp.bpf.h"
#include "inventory.bpf.h"

/* bpf_ringbuf_* and the BTF helpers are GPL-only. */
char LICENSE[] SEC("license") = "GPL";
