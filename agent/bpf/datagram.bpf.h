/* SPDX-License-Identifier: GPL-2.0-only */
/* Records of UDP datagrams, sent or received. */
#ifndef KTRACE_DATAGRAM_BPF_H
#define KTRACE_DATAGRAM_BPF_H

static __always_inline void kt_emit_udp_of(__u32 type, struct kt_counters *c,
					   const struct kt_tuple *t, const struct kt_owner *owner,
					   __u64 ts, __u64 cookie, int ret, __u32 flags)
{
	struct kt_event *e;

	/* Neither the error queue nor MSG_PEEK transfers new data. */
	if (ret >= 0 && !(flags & MSG_ERRQUEUE) && !(type == KT_UDP_RECV && flags & MSG_PEEK))
		kt_flow_data(t, IPPROTO_UDP, NULL, owner, ts, ret, type == KT_UDP_SEND);
	e = kt_reserve(type, c, t, ts);
	if (!e)
		return;
	kt_put_owner(e, owner);
	e->sock = cookie;
	e->flags = flags;
	if (ret >= 0)
		e->bytes = ret;
	else
		e->error = -ret;
	kt_submit(e, c);
}

static __always_inline void kt_emit_udp(__u32 type, const struct kt_tuple *t, __u64 ts,
					__u64 cookie, int ret, __u32 flags)
{
	struct kt_counters *c = kt_admit(type, t, kt_current_wanted(), ret > 0 ? ret : 0);
	struct kt_owner owner;

	if (!c)
		return;
	kt_read_current(&owner, KT_OWNER_PROCESS);
	kt_emit_udp_of(type, c, t, &owner, ts, cookie, ret, flags);
}

static __always_inline void kt_emit_held(const struct kt_datagram *d)
{
	struct kt_counters *c = kt_admit(KT_UDP_RECV, &d->tuple, kt_wanted(&d->owner), d->bytes);

	if (c)
		kt_emit_udp_of(KT_UDP_RECV, c, &d->tuple, &d->owner, d->ts, d->cookie, d->bytes,
			       d->flags);
}

/* Emits the datagram with the peer of the socket, because the exit of the receiving call
 * was missed, or the call still runs when the programs are detached. */
static __noinline void kt_emit_unfinished(const struct kt_datagram *d)
{
	kt_emit_held(d);
}

#endif
