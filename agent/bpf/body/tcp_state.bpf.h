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
static __always_inline __u64 kt_state_cookie(bool typed, struct sock *sk, const struct kt_tuple *t,
					     int old, int new)
{
	if (kt_is_new_child(old, new) && !t->rport)
		return 0;
	return kt_sock_id(typed, sk);
}

static __always_inline struct kt_sock *kt_state_entry(bool typed, struct sock *sk,
						      const struct kt_tuple *t, int old, int new)
{
	struct kt_sock *s = kt_sock_get(sk);

	if (!s)
		s = kt_sock_add(sk);
	if (!s)
		return NULL;
	/* A new child has no entry yet, so any entry belongs to an earlier socket. */
	if (kt_is_new_child(old, new) ||
	    kt_is_stale(s, KT_READ(typed, sk, __sk_common.skc_cookie.counter))) {
		kt_check_end(s, t);
		*s = *KT_ZERO(kt_sock);
	}
	if (!s->cookie)
		s->cookie = kt_state_cookie(typed, sk, t, old, new);
	if (new == TCP_SYN_SENT || new == TCP_LISTEN)
		kt_read_current(&s->owner, KT_OWNER_PROCESS);
	else if (kt_is_new_child(old, new))
		kt_own_by_listener(s, t);
	if (new == TCP_LISTEN)
		s->role = KT_ROLE_SERVER;
	return s;
}

static __always_inline void kt_emit_state(bool typed, struct sock *sk, struct kt_sock *s,
					  const struct kt_tuple *t, int old, int new, __u64 now)
{
	bool opens = new == TCP_SYN_SENT || new == TCP_LISTEN;
	struct kt_counters *c;
	struct kt_event *e;

	c = kt_admit(KT_TCP_STATE, t, s ? kt_wanted(&s->owner) : !opens || kt_current_wanted(), 0);
	if (!c)
		return;
	if (kt_config.pods_only && !s && !opens) {
		kt_add(c->lost_map, 1); /* the pod filter needs the owner in the entry */
		return;
	}
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
		e->sock = kt_state_cookie(typed, sk, t, old, new);
		if (new == TCP_SYN_SENT || new == TCP_LISTEN) {
			struct kt_owner caller;

			kt_read_current(&caller, KT_OWNER_PROCESS);
			kt_put_owner(e, &caller);
			e->role = new == TCP_LISTEN ? KT_ROLE_SERVER : KT_ROLE_CLIENT;
		}
	}
	kt_submit(e, c);
}

static __always_inline void kt_state_change(bool typed, struct sock *sk, int old, int new)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct kt_tuple t;
	struct kt_sock *s;

	kt_read_common(typed, &sk->__sk_common, &t);
	if (new == TCP_CLOSE)
		kt_read_last_port(sk, &t);
	s = kt_state_entry(typed, sk, &t, old, new);
	if (s)
		kt_check_change(s, &t, old);
	if (new == TCP_LISTEN)
		kt_listener_add(sk, &t);
	else if (old == TCP_LISTEN && new == TCP_CLOSE)
		kt_listener_del(sk, &t);
	else if (new == TCP_SYN_SENT)
		kt_connect_begin(sk, s, &t, now);
	if (kt_wants(KT_TCP_STATE))
		kt_emit_state(typed, sk, s, &t, old, new, now);
	if (!s)
		return;
	if (s->connect == KT_CONNECT_PENDING && kt_connect_over(old, new))
		kt_connect_end(typed, sk, s, &t, old, new, now);
	s->state_ts = now;
	s->last_change = kt_change(old, new);
}

/*
 * Whether the port filters exclude the change. A client's port may be chosen only after
 * SYN_SENT. Listeners are never excluded: a child may match by the port of its peer, and
 * its owner is that of the listener.
 */
static __always_inline bool kt_state_excluded(bool typed, const struct sock *sk, int old, int new)
{
	if (new == TCP_LISTEN || (old == TCP_LISTEN && new == TCP_CLOSE))
		return false;
	if (kt_config.ports_only && new == TCP_SYN_SENT)
		return false;
	return kt_excluded(typed, sk);
}

static __always_inline void kt_filter_state(const struct sock *sk, int old, int new)
{
	kt_filter(KT_TCP_STATE);
	if (old == TCP_SYN_SENT && kt_connect_over(old, new)) {
		struct kt_sock *s = kt_config.ports_only ? kt_sock_get(sk) : NULL;

		if (s)
			s->connect = KT_CONNECT_DONE;
		kt_filter(KT_CONNECT);
	}
}

static __always_inline int kt_sock_destroyed(bool typed, const struct sock *sk)
{
	struct kt_sock *s;
	__u64 key = (__u64)sk;
	struct kt_tuple t;

	/* Only sockets that had a peer: listeners are never excluded. */
	if (!kt_config.ports_only && KT_READ(typed, sk, __sk_common.skc_dport) &&
	    kt_excluded(typed, sk))
		return 0;
	s = kt_sock_get(sk);
	if (!s)
		return 0;
	if (kt_last_state(s) != TCP_CLOSE || s->connect == KT_CONNECT_PENDING) {
		kt_read_tuple(typed, sk, &t);
		kt_check_end(s, &t);
	}
	bpf_map_delete_elem(KT_MAP(socks), &key);
	return 0;
}

#endif
