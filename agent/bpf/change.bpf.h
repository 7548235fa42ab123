/* SPDX-License-Identifier: GPL-2.0-only */
/* The last state change of a socket. Each change starts in the state in which the last
 * one ended; if it does not, at least one change was missed. */
#ifndef KTRACE_CHANGE_BPF_H
#define KTRACE_CHANGE_BPF_H

/* Both states in one byte, since a state fits in four bits. Never 0, which means no
 * change yet. Two successive changes of a socket always have different values. */
static __always_inline __u8 kt_change(int old, int new)
{
	return old << 4 | new;
}

static __always_inline __u8 kt_last_state(const struct kt_sock *s)
{
	return s->last_change & 15;
}

/*
 * Counts a missed change. A host can exempt its own tasks from tracing, and softirq runs
 * on any task, so the kernel does not run the program for every change. Missed changes to
 * SYN_SENT are not counted here: user space compares the rows with the kernel's counter
 * ActiveOpens, and those of new children with PassiveOpens.
 */
static __always_inline void kt_check_change(const struct kt_sock *s, const struct kt_tuple *t,
					    int old)
{
	__u8 last = kt_last_state(s);

	if (s->last_change && last != old && !(last == TCP_CLOSE && old == TCP_SYN_SENT))
		kt_missed(KT_TCP_STATE, t, &s->owner);
}

/* Checks a destroyed socket: its last change must be to CLOSE, and no connection attempt
 * may be pending. */
static __always_inline void kt_check_end(const struct kt_sock *s, const struct kt_tuple *t)
{
	if (s->last_change && kt_last_state(s) != TCP_CLOSE)
		kt_missed(KT_TCP_STATE, t, &s->owner);
	if (s->connect == KT_CONNECT_PENDING)
		kt_missed(KT_CONNECT, t, &s->owner);
}

#endif
