/* SPDX-License-Identifier: GPL-2.0-only */
/* Connection attempts as the TCP state machine reports them, and the ICMP errors they receive. */
#ifndef KTRACE_CONNECT_BPF_H
#define KTRACE_CONNECT_BPF_H

static __always_inline struct kt_call *kt_connect_call(const struct sock *sk)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct kt_call *call = bpf_map_lookup_elem(KT_MAP(calls), &thread);

	if (!call || call->kind != KT_CALL_CONNECT || call->sk != (__u64)sk)
		return NULL;
	return call;
}

static __always_inline void kt_save_dest(struct kt_sock *s, const struct kt_tuple *t)
{
	__builtin_memcpy(s->dest_addr, t->remote, 16);
	s->dest_port = t->rport;
	s->dest_family = t->family;
	s->dest_net = t->ns_net;
}

/* Counts the outcome of an attempt in its flow. Flows include all that passes the filters,
 * even if `connect` rows are disabled. */
static __always_inline void kt_count_connect(const struct kt_tuple *t, const struct kt_owner *owner,
					     __u64 now, __u8 result)
{
	struct kt_flow *flow = kt_flow_of(t, IPPROTO_TCP, owner, now);

	if (!flow)
		return;
	flow->role = KT_ROLE_CLIENT;
	if (result == KT_RESULT_ESTABLISHED)
		kt_add(flow->opened, 1);
	else
		kt_add(flow->failed, 1);
}

/* Emits one `connect` row and counts the outcome in the flow. */
static __always_inline void kt_emit_connect(const struct kt_tuple *t, const struct kt_owner *owner,
					    __u64 cookie, __u64 started, __u64 now, __u8 result,
					    __s32 error)
{
	struct kt_counters *c;
	struct kt_event *e;

	if (!kt_wants(KT_CONNECT)) {
		if (kt_wanted(owner) && kt_port_match(t))
			kt_count_connect(t, owner, now, result);
		return;
	}
	c = kt_admit(KT_CONNECT, t, kt_wanted(owner), 0);
	if (!c)
		return;
	kt_count_connect(t, owner, now, result);
	e = kt_reserve(KT_CONNECT, c, t, now);
	if (!e)
		return;
	kt_put_owner(e, owner);
	e->sock = cookie;
	e->role = KT_ROLE_CLIENT;
	e->duration = started ? now - started : KT_UNKNOWN;
	e->result = result;
	e->error = error;
	kt_submit(e, c);
}

static __always_inline void kt_connect_begin(struct sock *sk, struct kt_sock *s,
					     const struct kt_tuple *t, __u64 now)
{
	struct kt_call *call = kt_connect_call(sk);

	if (call)
		call->syn_sent = 1;
	if (!s) {
		struct kt_counters *c;

		/* Without an entry the outcome cannot be recorded. */
		if (kt_wants(KT_CONNECT) && (c = kt_admit(KT_CONNECT, t, kt_current_wanted(), 0)))
			kt_add(c->lost_map, 1);
		return;
	}
	if (s->connect == KT_CONNECT_PENDING)
		kt_missed(KT_CONNECT, t, &s->owner);
	s->role = KT_ROLE_CLIENT;
	s->connect = KT_CONNECT_PENDING;
	s->connect_ts = call ? call->ts : now;
	s->connect_ret = 0;
	s->connect_icmp = 0;
	kt_save_dest(s, t);
}

/* Whether a SYN was sent. With TCP_FASTOPEN_CONNECT it waits for the first data. */
static __always_inline bool kt_syn_went_out(const struct sock *sk)
{
	return BPF_CORE_READ((const struct tcp_sock *)sk, segs_out);
}

static __always_inline bool kt_in_handshake(int state)
{
	return state == TCP_SYN_SENT || state == TCP_SYN_RECV;
}

static __always_inline void kt_connect_end(bool typed, struct sock *sk, struct kt_sock *s,
					   const struct kt_tuple *t, int old, int new, __u64 now)
{
	__u8 result = KT_RESULT_ESTABLISHED;
	__u64 began = s->connect_ts;
	int error = 0;

	if (!kt_in_handshake(old)) {
		began = 0; /* the change to ESTABLISHED was missed */
	} else if (new == TCP_CLOSE) {
		struct kt_call *call = kt_connect_call(sk);

		error = KT_READ(typed, sk, sk_err);
		result = KT_RESULT_FAILED;
		if (!error && call && call->syn_sent) {
			/* The call that began the attempt fails (no route, no
			 * port). Its return value is the reason. */
			call->deferred = 1;
			return;
		}
		if (!error && !kt_syn_went_out(sk)) {
			s->connect = KT_CONNECT_DONE;
			return;
		}
		if (!error && s->connect_icmp) {
			error = s->connect_icmp;
		} else if (!error && kt_is_restart(-(long)s->connect_ret)) {
			result = KT_RESULT_INTERRUPTED;
			error = EINTR;
		} else if (!error) {
			result = KT_RESULT_ABANDONED;
		}
	}
	s->connect = KT_CONNECT_DONE;
	kt_emit_connect(t, &s->owner, s->cookie, began, now, result, error);
}

/* Whether the attempt is over: by this change, or by an earlier one that was missed. */
static __always_inline bool kt_connect_over(int old, int new)
{
	return new == TCP_ESTABLISHED || new == TCP_CLOSE ||
	       (old != TCP_CLOSE && !kt_in_handshake(old));
}

/*
 * An ICMP error for a SYN does not end the attempt while a call holds the socket: it is
 * queued, and SO_ERROR returns it once (tcp_v4_err). A client that reads SO_ERROR and
 * closes leaves no errno in the socket, so the errno is read from the queue here.
 */
static __always_inline int kt_error_reported(bool typed, const struct sock *sk)
{
	struct sk_buff *skb;
	struct kt_sock *s;

	if (kt_protocol(typed, sk) != IPPROTO_TCP ||
	    KT_READ(typed, sk, __sk_common.skc_state) != TCP_SYN_SENT)
		return 0;
	s = kt_sock_get(sk);
	skb = KT_READ(typed, sk, sk_error_queue.prev);
	if (s && (void *)skb != (void *)&sk->sk_error_queue)
		s->connect_icmp = BPF_CORE_READ((struct sock_exterr_skb *)&skb->cb, ee.ee_errno);
	return 0;
}

#endif
