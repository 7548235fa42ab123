/* SPDX-License-Identifier: GPL-2.0-only */
/* TCP: state changes, connects by the state machine, retransmits. */
#ifndef KTRACE_TCP_BPF_H
#define KTRACE_TCP_BPF_H

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_CLOSE 7
#define TCP_LISTEN 10
#define TCP_NEW_SYN_RECV 12

#define EINTR 4
#define EISCONN 106
#define EALREADY 114
#define EINPROGRESS 115
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516

static __always_inline bool kt_is_restart(long error)
{
	return error == EINTR || (error >= ERESTARTSYS && error <= ERESTART_RESTARTBLOCK);
}

static __always_inline struct kt_call *kt_connect_call(const struct sock *sk)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct kt_call *call = bpf_map_lookup_elem(&calls, &thread);

	if (!call || call->kind != KT_CALL_CONNECT || call->sk != (__u64)sk)
		return NULL;
	return call;
}

/* What the flow says of a connect that ended. It sums up what passed the filters,
 * whether or not such rows are wanted. */
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

/* One `connect` row, and the flow's count of how connects ended. */
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

/* States fit four bits, so this is never 0; the next change of a socket begins
 * where the last one ended, so it is another. */
static __always_inline __u8 kt_change(int old, int new)
{
	return old << 4 | new;
}

static __always_inline __u8 kt_told_state(const struct kt_sock *s)
{
	return s->told & 15;
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
	__u8 last = kt_told_state(s);

	if (s->told && last != old && !(last == TCP_CLOSE && old == TCP_SYN_SENT))
		kt_missed(KT_TCP_STATE, t, &s->owner);
}

/* The end of a socket: its last change was to CLOSE, and no connect is open. */
static __always_inline void kt_check_end(const struct kt_sock *s, const struct kt_tuple *t)
{
	if (s->told && kt_told_state(s) != TCP_CLOSE)
		kt_missed(KT_TCP_STATE, t, &s->owner);
	if (s->connect == KT_CONNECT_PENDING)
		kt_missed(KT_CONNECT, t, &s->owner);
}

static __always_inline void kt_connect_begin(struct sock *sk, struct kt_sock *s,
					     const struct kt_tuple *t, __u64 now)
{
	struct kt_call *call = kt_connect_call(sk);

	if (call)
		call->syn_sent = 1;
	if (!s) {
		struct kt_counters *c;

		/* Without an entry the outcome can't be told: one event lost. */
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
	kt_keep_asked(s, t);
}

/* Whether the attempt asked anybody: the SYN of TCP_FASTOPEN_CONNECT waits for data. */
static __always_inline bool kt_syn_went_out(const struct sock *sk)
{
	return BPF_CORE_READ((const struct tcp_sock *)sk, segs_out);
}

static __always_inline bool kt_in_handshake(int state)
{
	return state == TCP_SYN_SENT || state == TCP_SYN_RECV;
}

static __always_inline void kt_connect_end(struct sock *sk, struct kt_sock *s,
					   const struct kt_tuple *t, int old, int new, __u64 now)
{
	__u8 result = KT_RESULT_ESTABLISHED;
	__u64 began = s->connect_ts;
	int error = 0;

	if (!kt_in_handshake(old)) {
		began = 0; /* established unseen: nobody knows when */
	} else if (new == TCP_CLOSE) {
		struct kt_call *call = kt_connect_call(sk);

		error = sk->sk_err;
		result = KT_RESULT_FAILED;
		if (!error && call && call->syn_sent) {
			/* The call that began it gives up (no route, no port):
			 * what it returns is the reason. */
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

/* The birth of a listener's child. */
static __always_inline bool kt_is_birth(int old, int new)
{
	return old == TCP_LISTEN && new == TCP_SYN_RECV;
}

/*
 * Before v6.15 a child is told before its peer and its cookie are stored: what stands
 * there is its listener's (inet_csk_clone_lock). 0 then; the next change has its own.
 */
static __always_inline __u64 kt_state_cookie(struct sock *sk, const struct kt_tuple *t, int old,
					     int new)
{
	if (kt_is_birth(old, new) && !t->rport)
		return 0;
	return bpf_get_socket_cookie(sk);
}

static __always_inline struct kt_sock *kt_state_entry(struct sock *sk, const struct kt_tuple *t,
						      int old, int new)
{
	struct kt_sock *s = kt_sock_get(sk);

	if (!s)
		s = kt_sock_add(sk);
	if (!s)
		return NULL;
	/* A child is new, whatever stood here. */
	if (kt_is_birth(old, new) || kt_is_stale(s, sk->__sk_common.skc_cookie.counter)) {
		kt_check_end(s, t);
		*s = kt_zero_sock;
	}
	if (!s->cookie)
		s->cookie = kt_state_cookie(sk, t, old, new);
	if (new == TCP_SYN_SENT || new == TCP_LISTEN)
		kt_read_current(&s->owner, KT_OWNER_PROCESS);
	else if (kt_is_birth(old, new))
		kt_own_by_listener(s, t);
	if (new == TCP_LISTEN)
		s->role = KT_ROLE_SERVER;
	return s;
}

static __always_inline void kt_emit_state(struct sock *sk, struct kt_sock *s,
					  const struct kt_tuple *t, int old, int new, __u64 now)
{
	bool opens = new == TCP_SYN_SENT || new == TCP_LISTEN;
	struct kt_counters *c;
	struct kt_event *e;

	c = kt_admit(KT_TCP_STATE, t, s ? kt_wanted(&s->owner) : !opens || kt_current_wanted(), 0);
	if (c && kt_config.pods_only && !s && !opens) {
		kt_add(c->lost_map, 1); /* whose it is would stand there */
		return;
	}

	if (!c)
		return;
	e = kt_reserve(KT_TCP_STATE, c, t, now);
	if (!e)
		return;
	e->old_state = old;
	e->new_state = new;
	e->duration = KT_UNKNOWN;
	if (s) {
		kt_put_owner(e, &s->owner);
		e->sock = s->cookie;
		e->role = s->role;
		if (s->state_ts && kt_told_state(s) == old)
			e->duration = now - s->state_ts;
	} else {
		e->sock = kt_state_cookie(sk, t, old, new);
		if (new == TCP_SYN_SENT || new == TCP_LISTEN) {
			struct kt_owner current;

			kt_read_current(&current, KT_OWNER_PROCESS);
			kt_put_owner(e, &current);
			e->role = new == TCP_LISTEN ? KT_ROLE_SERVER : KT_ROLE_CLIENT;
		}
	}
	kt_submit(e, c);
}

static __always_inline bool kt_is_tcp(const struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_TCP && kt_is_inet(sk->__sk_common.skc_family);
}

/* The outcome is known, or the socket has gone on from where it was known. */
static __always_inline bool kt_connect_over(int old, int new)
{
	return new == TCP_ESTABLISHED || new == TCP_CLOSE ||
	       (old != TCP_CLOSE && !kt_in_handshake(old));
}

static __always_inline void kt_tell_state(struct sock *sk, int old, int new)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct kt_tuple t;
	struct kt_sock *s;

	kt_read_common(true, &sk->__sk_common, &t);
	if (new == TCP_CLOSE)
		kt_read_last_port(sk, &t);
	s = kt_state_entry(sk, &t, old, new);
	if (s)
		kt_check_change(s, &t, old);
	if (new == TCP_LISTEN)
		kt_listener_add(sk, &t);
	else if (old == TCP_LISTEN && new == TCP_CLOSE)
		kt_listener_del(sk, &t);
	else if (new == TCP_SYN_SENT)
		kt_connect_begin(sk, s, &t, now);
	if (kt_wants(KT_TCP_STATE))
		kt_emit_state(sk, s, &t, old, new, now);
	if (!s)
		return;
	if (s->connect == KT_CONNECT_PENDING && kt_connect_over(old, new))
		kt_connect_end(sk, s, &t, old, new, now);
	s->state_ts = now;
	s->told = kt_change(old, new);
}

/*
 * Every change but those of request and timewait sockets passes here, in
 * process context or softirq (inet_sk_state_store, tcp_set_state).
 *
 * The kernel skips a program that already runs on the CPU, and a softirq does
 * interrupt these in process context: about one change in a hundred on a busy
 * host. So each program has a second copy that is called after the first. What
 * interrupts the one copy finds the other free.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state, struct sock *sk, int old, int new)
{
	if (kt_is_tcp(sk))
		kt_tell_state(sk, old, new);
	return 0;
}

/* The changes of one socket come one after the other (it is locked), so its own
 * mark says whether the first copy ran. Without room for marks nobody can tell. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state_nested, struct sock *sk, int old, int new)
{
	struct kt_sock *s;
	__u32 zero = 0;
	__u64 *count;

	if (!kt_is_tcp(sk))
		return 0;
	s = kt_sock_get(sk);
	if (s ? s->told == kt_change(old, new) : kt_socks_full)
		return 0;
	kt_tell_state(sk, old, new);
	count = bpf_map_lookup_elem(&rescued, &zero);
	if (count)
		kt_add(*count, 1);
	return 0;
}

static __always_inline int kt_forget(const struct sock *sk)
{
	struct kt_sock *s = kt_sock_get(sk);
	__u64 key = (__u64)sk;
	struct kt_tuple t;

	if (!s)
		return 0;
	if (kt_told_state(s) != TCP_CLOSE || s->connect == KT_CONNECT_PENDING) {
		kt_read_tuple(true, sk, &t);
		kt_check_end(s, &t);
	}
	bpf_map_delete_elem(&socks, &key);
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroy, struct sock *sk)
{
	return kt_forget(sk);
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroy_nested, struct sock *sk)
{
	return kt_forget(sk);
}

/*
 * An ICMP error that answers a SYN while the call still holds the socket ends
 * nothing: it is queued, and SO_ERROR tells it once (tcp_v4_err). A client that
 * asks and closes leaves no errno behind, so it is taken from the queue here.
 */
SEC("tp_btf/inet_sk_error_report")
int BPF_PROG(connect_icmp, const struct sock *sk)
{
	struct sk_buff *skb;
	struct kt_sock *s;

	if (!kt_is_tcp(sk) || sk->__sk_common.skc_state != TCP_SYN_SENT)
		return 0;
	s = kt_sock_get(sk);
	skb = sk->sk_error_queue.prev;
	if (s && (void *)skb != (void *)&sk->sk_error_queue)
		s->connect_icmp = BPF_CORE_READ((struct sock_exterr_skb *)&skb->cb, ee.ee_errno);
	return 0;
}

static const struct kt_owner kt_nobody = {};

static __always_inline void kt_emit_retransmit(const struct kt_tuple *t, struct kt_sock *s,
					       __u64 cookie, __u8 state, __u32 segs, __u32 flags)
{
	struct kt_counters *c =
		kt_admit(KT_RETRANSMIT, t, kt_wanted(s ? &s->owner : &kt_nobody), 0);
	__u64 now = bpf_ktime_get_boot_ns();
	struct kt_flow *flow;
	struct kt_event *e;

	if (!c)
		return;
	flow = kt_flow_of(t, IPPROTO_TCP, s ? &s->owner : &kt_nobody, now);
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

/* With `err` the tracepoint tells failed attempts too: those are no segment on
 * the wire. The caller's prototype is in BTF, so user space picks. */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_err, const struct sock *sk, struct sk_buff *skb, int err)
{
	return err ? 0 : kt_retransmit(sk, skb);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit, const struct sock *sk, struct sk_buff *skb)
{
	return kt_retransmit(sk, skb);
}

/* The request is no full socket: only its common part may be read. */
SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(tcp_retransmit_synack, const struct sock *sk, const struct request_sock *req)
{
	struct kt_sock *listener = kt_sock_get(sk);
	struct kt_tuple t;

	kt_read_common(true, &req->__req_common, &t);
	kt_emit_retransmit(&t, listener, req->__req_common.skc_cookie.counter, TCP_NEW_SYN_RECV, 1,
			   KT_FLAG_SYNACK);
	return 0;
}

#endif
