/* SPDX-License-Identifier: GPL-2.0-only */
/* The last state change of a socket, and what it proves about missed ones. */
#ifndef KTRACE_CHANGE_BPF_H
#define KTRACE_CHANGE_BPF_H

/* States fit four bits, so this is never 0; the next change of a socket begins
 * where the last one ended, so it is another. */
static __always_inline __u8 kt_change(int old, int new)
{
	return old << 4 | new;
}

static __always_inline __u8 kt_last_state(const struct kt_sock *s)
{
	return s->last_change & 15;
}

/*
 * A change begins where the last one ended. Where it does not, at least one went
 * by unseen: programs may be kept from running (a host can exempt tasks of its
 * own, and softirq works upon any task). The way into SYN_SENT is left to the
 * kernel's count of active opens (ActiveOpens), as births are to PassiveOpens.
 */
static __always_inline void kt_check_change(const struct kt_sock *s, const struct kt_tuple *t,
					    int old)
{
	__u8 last = kt_last_state(s);

	if (s->last_change && last != old && !(last == TCP_CLOSE && old == TCP_SYN_SENT))
		kt_missed(KT_TCP_STATE, t, &s->owner);
}

/* The end of a socket: its last change was to CLOSE, and no connect is open. */
static __always_inline void kt_check_end(const struct kt_sock *s, const struct kt_tuple *t)
{
	if (s->last_change && kt_last_state(s) != TCP_CLOSE)
		kt_missed(KT_TCP_STATE, t, &s->owner);
	if (s->connect == KT_CONNECT_PENDING)
		kt_missed(KT_CONNECT, t, &s->owner);
}

#endif
