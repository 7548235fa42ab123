/* SPDX-License-Identifier: GPL-2.0-only */
/* Retransmitted TCP segments and SYN-ACKs. */
#ifndef KTRACE_RETRANSMIT_BPF_H
#define KTRACE_RETRANSMIT_BPF_H

static __always_inline void kt_emit_retransmit(const struct kt_tuple *t, struct kt_sock *s,
					       __u64 cookie, __u8 state, __u32 segs, __u32 flags)
{
	struct kt_counters *c =
		kt_admit(KT_RETRANSMIT, t, kt_wanted(s ? &s->owner : KT_ZERO(kt_owner)), 0);
	__u64 now = bpf_ktime_get_boot_ns();
	struct kt_flow *flow;
	struct kt_event *e;

	if (!c)
		return;
	flow = kt_flow_of(t, IPPROTO_TCP, s ? &s->owner : KT_ZERO(kt_owner), now);
	if (flow) {
		kt_add(flow->retrans_segs, segs);
		kt_flow_role(flow, s);
	}
	e = kt_reserve(KT_RETRANSMIT, c, t, now);
	if (!e)
		return;
	e->sock = cookie;
	if (s) {
		kt_put_owner(e, &s->owner);
		e->role = s->role;
	}
	e->new_state = state;
	e->segs = segs;
	e->flags = flags;
	kt_submit(e, c);
}

static __always_inline int kt_retransmit(const struct sock *sk, struct sk_buff *skb)
{
	__u16 segs = BPF_CORE_READ((struct tcp_skb_cb *)&skb->cb, tcp_gso_segs);
	__u64 cookie = sk->__sk_common.skc_cookie.counter;
	struct kt_sock *s = kt_sock_live(sk, cookie);
	struct kt_tuple t;

	kt_read_tuple(true, sk, &t);
	kt_emit_retransmit(&t, s, cookie, sk->__sk_common.skc_state, segs ?: 1, 0);
	return 0;
}

/* A request is not a full socket: only its common part may be read. */
static __always_inline int kt_retransmit_synack(const struct sock *sk,
						const struct request_sock *req)
{
	struct kt_tuple t;

	kt_read_common(true, &req->__req_common, &t);
	kt_emit_retransmit(&t, kt_sock_get(sk), req->__req_common.skc_cookie.counter,
			   TCP_NEW_SYN_RECV, 1, KT_FLAG_SYNACK);
	return 0;
}

#endif
