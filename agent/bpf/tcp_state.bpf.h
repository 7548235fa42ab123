/* SPDX-License-Identifier: GPL-2.0-only */
/* TCP state changes of a socket, from its creation to its destruction. */
#ifndef KTRACE_TCP_STATE_BPF_H
#define KTRACE_TCP_STATE_BPF_H

/* Whether this is the first change of a child that a listener created. */
static __always_inline bool kt_is_new_child(int old, int new)
{
	return old == TCP_LISTEN && new == TCP_SYN_RECV;
}

/*
 * Before v6.15 the first change of a child is reported before its peer and its cookie
 * are stored; the cookie is still that of the listener (inet_csk_clone_lock). Returns 0
 * then: the next change has the cookie of the child.
 */
static __always_inline __u64 kt_state_cookie(struct sock *sk, const struct kt_tuple *t, int old,
					     int new)
{
	if (kt_is_new_child(old, new) && !t->rport)
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
	/* A new child has no entry yet, so any entry belongs to an earlier socket. */
	if (kt_is_new_child(old, new) || kt_is_stale(s, sk->__sk_common.skc_cookie.counter)) {
		kt_check_end(s, t);
		*s = kt_zero_sock;
	}
	if (!s->cookie)
		s->cookie = kt_state_cookie(sk, t, old, new);
	if (new == TCP_SYN_SENT || new == TCP_LISTEN)
		kt_read_current(&s->owner, KT_OWNER_PROCESS);
	else if (kt_is_new_child(old, new))
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
		kt_add(c->lost_map, 1); /* the pod filter needs the owner in the entry */
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
		if (s->state_ts && kt_last_state(s) == old)
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

static __always_inline void kt_state_change(struct sock *sk, int old, int new)
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
	s->last_change = kt_change(old, new);
}

/*
 * Called for every change except those of request and timewait sockets, in process
 * context or in softirq (inet_sk_state_store, tcp_set_state).
 *
 * The kernel skips a program that is already running on the CPU. Softirq does interrupt
 * these programs in process context: about one change in a hundred is skipped on a busy
 * host. Each program therefore has a second copy that is called after the first: if a
 * change in softirq interrupts one copy, the other one handles it.
 */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state, struct sock *sk, int old, int new)
{
	if (kt_is_tcp(sk))
		kt_state_change(sk, old, new);
	return 0;
}

/* The changes of one socket are serialized by its lock, so last_change shows whether the
 * first copy ran. It is unknown for a socket without an entry once `socks` was full. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state_nested, struct sock *sk, int old, int new)
{
	struct kt_sock *s;
	__u32 zero = 0;
	__u64 *count;

	if (!kt_is_tcp(sk))
		return 0;
	s = kt_sock_get(sk);
	if (s ? s->last_change == kt_change(old, new) : kt_socks_full)
		return 0;
	kt_state_change(sk, old, new);
	count = bpf_map_lookup_elem(&rescued, &zero);
	if (count)
		kt_add(*count, 1);
	return 0;
}

static __always_inline int kt_sock_destroyed(const struct sock *sk)
{
	struct kt_sock *s = kt_sock_get(sk);
	__u64 key = (__u64)sk;
	struct kt_tuple t;

	if (!s)
		return 0;
	if (kt_last_state(s) != TCP_CLOSE || s->connect == KT_CONNECT_PENDING) {
		kt_read_tuple(true, sk, &t);
		kt_check_end(s, &t);
	}
	bpf_map_delete_elem(&socks, &key);
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroy, struct sock *sk)
{
	return kt_sock_destroyed(sk);
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroy_nested, struct sock *sk)
{
	return kt_sock_destroyed(sk);
}

#endif
