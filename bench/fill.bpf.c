// SPDX-License-Identifier: GPL-2.0-only
/* Fills a ring buffer like the collector's with records, as fast as the kernel can:
 * the known load of bench_drain.py. Run by BPF_PROG_TEST_RUN, attached to nothing. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "events.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 << 20);
} ring SEC(".maps");

static long put(__u32 index, void *ctx)
{
	struct kt_event *e = bpf_ringbuf_reserve(&ring, sizeof(*e), 0);

	if (!e)
		return 1;
	__builtin_memset(e, 0, sizeof(*e));
	e->ts = bpf_ktime_get_boot_ns();
	e->sock = index;
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	*(__u64 *)ctx += 1;
	return 0;
}

struct fill {
	__u64 wanted;
	__u64 done;
};

SEC("syscall")
int fill(struct fill *ctx)
{
	__u64 done = 0;

	bpf_loop(ctx->wanted, put, &done, 0);
	ctx->done = done;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
