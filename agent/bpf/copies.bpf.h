/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Events whose program the kernel skips. It does not run a program that already runs on
 * the CPU: softirq interrupts a program, and since tracepoints run their programs under
 * SRCU-fast (v7.0) and trampolines run theirs without disabling preemption (v5.11), a task
 * that is preempted in a program does so, too.
 *
 * Each program therefore exists twice. An event that one copy does not see is handled by
 * the other one. A thread remembers which copy handled its event, so the order in which
 * the kernel calls them does not matter. A third program, too short to be preempted in
 * practice, counts the calls: what neither copy handled is known by its kind.
 */
#ifndef KTRACE_COPIES_BPF_H
#define KTRACE_COPIES_BPF_H

/* Whether this copy must handle the event. Marks that a thread cannot keep leave all its
 * events to copy 0. */
static __always_inline bool kt_turn(struct kt_thread *thread, enum kt_pair pair, int copy)
{
	if (!thread)
		return copy == 0;
	if (thread->handled[pair][!copy]) {
		thread->handled[pair][!copy]--;
		return false;
	}
	return true;
}

/* Marks the event as handled. This is the last step of a copy: softirq may interrupt it
 * before, and its event must not find the mark of the outer one. */
static __always_inline void kt_handled(struct kt_thread *thread, enum kt_pair pair, int copy)
{
	if (thread)
		thread->handled[pair][copy]++;
}

static __always_inline struct kt_state_copies *kt_state_copies(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(KT_MAP(state_copies), &zero);
}

static __always_inline struct kt_data_calls *kt_data_calls(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(KT_MAP(data_calls), &zero);
}

/* Counts a call that a copy has to handle. User space sets kt_counting once all copies are
 * attached, and clears it before it detaches them. */
static __always_inline int kt_count_data(enum kt_data data)
{
	struct kt_data_calls *calls;
	struct kt_thread *thread;

	if (data >= KT_DATA_KINDS || !kt_counting)
		return 0;
	thread = kt_thread();
	calls = kt_data_calls();
	if (!thread || !calls)
		return 0;
	thread->counted[data]++;
	kt_add(calls->counted[data], 1);
	return 0;
}

static __always_inline void kt_data_handled(struct kt_thread *thread, enum kt_pair pair, int copy,
					    enum kt_data data)
{
	struct kt_data_calls *calls;

	kt_handled(thread, pair, copy);
	if (!thread || data >= KT_DATA_KINDS || !thread->counted[data])
		return;
	thread->counted[data]--;
	calls = kt_data_calls();
	if (calls)
		kt_add(calls->handled[data], 1);
}

#endif
