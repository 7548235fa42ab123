/* SPDX-License-Identifier: GPL-2.0-only */
/* The system call that a thread is executing, from its enter to its exit program. */
#ifndef KTRACE_CALLS_BPF_H
#define KTRACE_CALLS_BPF_H

KT_DEFINE_ZERO(kt_call);

static __always_inline struct kt_call *kt_call_get(void)
{
	__u64 thread = bpf_get_current_pid_tgid();

	return bpf_map_lookup_elem(KT_MAP(calls), &thread);
}

static __always_inline void kt_call_end(void)
{
	__u64 thread = bpf_get_current_pid_tgid();

	bpf_map_delete_elem(KT_MAP(calls), &thread);
}

/* Clears the entry of an earlier call whose exit was missed, and emits the datagram that
 * it still holds. Not inlined: it is rare, and many programs contain the caller. */
static __noinline void kt_call_clear(void)
{
	struct kt_call *call = kt_call_get();

	if (!call)
		return;
	if (call->held)
		kt_emit_unfinished(&call->datagram);
	__builtin_memset(call, 0, sizeof(*call));
}

static __always_inline struct kt_call *kt_call_begin(__u8 kind, struct sock *sk, __u64 name,
						     __u32 flags)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct kt_call *call;

	if (bpf_map_update_elem(KT_MAP(calls), &thread, KT_ZERO(kt_call), BPF_NOEXIST) == -EEXIST)
		kt_call_clear();
	call = bpf_map_lookup_elem(KT_MAP(calls), &thread);
	if (!call) {
		struct kt_overflow *o = kt_overflow();

		kt_shared.calls_full = 1;
		if (o)
			kt_add(o->calls, 1);
		return NULL;
	}
	call->sk = (__u64)sk;
	call->kind = kind;
	call->name = name;
	call->flags = flags;
	return call;
}

#endif
