/* SPDX-License-Identifier: GPL-2.0-only */
/* Facts about a thread between two programs. */
#ifndef KTRACE_THREAD_BPF_H
#define KTRACE_THREAD_BPF_H

#ifdef KT_BASIC
KT_DEFINE_ZERO(kt_thread);

static __always_inline struct kt_thread *kt_thread(void)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct kt_thread *thread = bpf_map_lookup_elem(KT_MAP(threads), &id);

	if (thread)
		return thread;
	bpf_map_update_elem(KT_MAP(threads), &id, KT_ZERO(kt_thread), BPF_NOEXIST);
	return bpf_map_lookup_elem(KT_MAP(threads), &id);
}
#else
/* In task storage, which costs no lookup by key. Returns NULL if it cannot be created, or
 * if an interrupted program is in it. */
static __always_inline struct kt_thread *kt_thread(void)
{
	return bpf_task_storage_get(KT_MAP(threads), kt_current(), 0,
				    BPF_LOCAL_STORAGE_GET_F_CREATE);
}
#endif

#endif
