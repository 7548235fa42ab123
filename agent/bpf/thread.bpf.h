/* SPDX-License-Identifier: GPL-2.0-only */
/* Facts about a thread between two programs: in task storage, which costs no lookup by key. */
#ifndef KTRACE_THREAD_BPF_H
#define KTRACE_THREAD_BPF_H

/* Returns NULL if the storage cannot be created, or if an interrupted program is in it. */
static __always_inline struct kt_thread *kt_thread(void)
{
	return bpf_task_storage_get(&threads, bpf_get_current_task_btf(), 0,
				    BPF_LOCAL_STORAGE_GET_F_CREATE);
}

#endif
