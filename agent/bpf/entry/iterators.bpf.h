/* SPDX-License-Identifier: GPL-2.0-only */
/* Iterators: owners of sockets that existed before the capture, the inventory of TCP
 * sockets, and attempts and datagrams that are still pending when the capture ends. */
#ifndef KTRACE_ITERATORS_BPF_H
#define KTRACE_ITERATORS_BPF_H

static __always_inline struct socket *kt_sock_from_file(struct file *file)
{
#ifdef KT_BASIC
	/* The private data point back to the file only if it is a socket. */
	struct socket *sock = file->private_data;

	return sock && BPF_CORE_READ(sock, file) == file ? sock : NULL;
#else
	return bpf_sock_from_file(file);
#endif
}

/* If several processes hold a socket, the one with the lowest tgid owns it. PID 1 owns it
 * only if no other process holds it (socket activation). */
SEC("iter/task_file")
int prime_owners(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *sock;
	struct kt_tuple t;
	struct kt_sock *s;
	struct sock *sk;
	__u8 state;

	if (!task || !file) {
		kt_shared.primed = 1; /* the last call of the iteration */
		return 0;
	}
	sock = kt_sock_from_file(file);
	if (!sock)
		return 0;
	sk = KT_READ(KT_MODERN, sock, sk);
	if (!sk || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP ||
	    !kt_is_inet(BPF_CORE_READ(sk, __sk_common.skc_family)))
		return 0;
	state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state != TCP_LISTEN && kt_excluded(false, sk))
		return 0;
	s = kt_sock_get(sk);
	if (!s)
		s = kt_sock_add(sk);
	if (!s)
		return 0;
	if (s->owner.source == KT_OWNER_NONE ||
	    (s->owner.source == KT_OWNER_INVENTORY && s->owner.tgid == 1))
		kt_read_task(true, task, &s->owner, KT_OWNER_INVENTORY);
	if (!s->cookie)
		s->cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (state == TCP_LISTEN) {
		kt_read_tuple(false, sk, &t);
		kt_listener_add(sk, &t);
		s->role = KT_ROLE_SERVER;
	} else if (state == TCP_SYN_SENT && s->connect == KT_CONNECT_NONE) {
		kt_read_tuple(false, sk, &t);
		kt_save_dest(s, &t);
		s->connect = KT_CONNECT_PENDING;
		s->role = KT_ROLE_CLIENT;
	}
	return 0;
}

/* Writes one record for each TCP socket of the reader's network namespace. Request and
 * timewait sockets share only the common part with full sockets. */
SEC("iter/tcp")
int list_sockets(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct kt_event e = {};
	struct kt_tuple t;
	struct kt_sock *s;

	if (!skc)
		return 0;
	kt_read_common(true, skc, &t);
	if (!kt_port_match(&t))
		return 0;
	if (BPF_CORE_READ(skc, skc_state) == TCP_NEW_SYN_RECV)
		s = kt_sock_get(BPF_CORE_READ(skc, skc_listener));
	else
		s = kt_sock_live((struct sock *)skc, BPF_CORE_READ(skc, skc_cookie.counter));
	if (!kt_wanted(s ? &s->owner : KT_ZERO(kt_owner)))
		return 0;
	e.ts = bpf_ktime_get_boot_ns();
	e.type = KT_STOCK;
	e.duration = KT_UNKNOWN;
	e.new_state = BPF_CORE_READ(skc, skc_state);
	e.sock = BPF_CORE_READ(skc, skc_cookie.counter);
	kt_put_tuple(&e, &t);
	if (s) {
		kt_put_owner(&e, &s->owner);
		e.role = s->role;
		if (e.new_state == TCP_NEW_SYN_RECV)
			e.owner_source = KT_OWNER_LISTENER;
		if (s->state_ts)
			e.duration = e.ts - s->state_ts;
	}
	bpf_seq_write(ctx->meta->seq, &e, sizeof(e));
	return 0;
}

/*
 * Reads the tuple of an attempt that was pending when the programs were detached. Then the
 * destruction of a socket is no longer reported, and its memory can be reused at once
 * (SLAB_TYPESAFE_BY_RCU). Only an unchanged cookie, read after the other fields, proves
 * that the local address belongs to this socket. Returns false if no SYN was sent.
 */
static __always_inline bool kt_read_pending(const struct sock *sk, const struct kt_sock *s,
					    struct kt_tuple *t)
{
	bool same, syn_sent;

	kt_read_tuple(false, sk, t);
	syn_sent = kt_syn_went_out(sk);
	same = s->cookie == (__u64)BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	/* Two cookies of 0 prove nothing: the state and the destination must match, too. */
	if (!s->cookie)
		same = same && BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_SYN_SENT &&
		       t->rport == s->dest_port && t->ns_net == s->dest_net &&
		       kt_same_addr(t->remote, s->dest_addr);
	if (!same) {
		__builtin_memset(t, 0, sizeof(*t));
		if (s->dest_family == 4)
			kt_set_v4(t->local, 0);
	}
	__builtin_memcpy(t->remote, s->dest_addr, 16);
	t->rport = s->dest_port;
	t->family = s->dest_family;
	t->ns_net = s->dest_net;
	t->peer_source = KT_PEER_SOCKET;
	return syn_sent || !same;
}

static __always_inline void kt_emit_pending(const struct sock *sk, const struct kt_sock *s)
{
	struct kt_counters *c;
	struct kt_event *e;
	struct kt_tuple t;

	if (s->connect != KT_CONNECT_PENDING || !kt_wants(KT_CONNECT) ||
	    !kt_read_pending(sk, s, &t))
		return;
	c = kt_admit(KT_CONNECT, &t, kt_wanted(&s->owner), 0);
	if (!c)
		return;
	e = kt_reserve(KT_CONNECT, c, &t, bpf_ktime_get_boot_ns());
	if (!e)
		return;
	kt_put_owner(e, &s->owner);
	e->sock = s->cookie;
	e->role = KT_ROLE_CLIENT;
	e->duration = s->connect_ts ? e->ts - s->connect_ts : KT_UNKNOWN;
	e->result = KT_RESULT_PENDING;
	kt_submit(e, c);
}

static __always_inline void kt_emit_left(struct kt_call *call)
{
	if (call && call->held)
		kt_emit_unfinished(&call->datagram);
}

/*
 * What was left when the programs were detached: attempts that are still pending, and
 * datagrams of calls that still run (recvmmsg waits until its array is full). Written to the
 * ring, whose last drain follows. The programs visit every element of a map by
 * bpf_for_each_map_elem() (69c087ba6225, v5.13), once, at the end of an iteration over all
 * maps. The others below, by iter/bpf_map_elem, are for kernels without that helper: some
 * hosts refuse this type (EPERM at load).
 */
static long kt_visit_pending(void *map, const __u64 *sk, struct kt_sock *s, void *unused)
{
	kt_emit_pending((struct sock *)*sk, s);
	return 0;
}

SEC("iter/bpf_map")
int list_pending(struct bpf_iter__bpf_map *ctx)
{
	if (!ctx->map)
		bpf_for_each_map_elem(KT_MAP(socks), kt_visit_pending, NULL, 0);
	return 0;
}

static long kt_visit_held(void *map, const __u64 *thread, struct kt_call *call, void *unused)
{
	kt_emit_left(call);
	return 0;
}

SEC("iter/bpf_map")
int list_held(struct bpf_iter__bpf_map *ctx)
{
	if (!ctx->map)
		bpf_for_each_map_elem(KT_MAP(calls), kt_visit_held, NULL, 0);
	return 0;
}

SEC("iter/bpf_map_elem")
int list_pending_elem(struct bpf_iter__bpf_map_elem *ctx)
{
	__u64 *key = ctx->key;
	struct kt_sock *value = ctx->value;

	if (key && value)
		kt_emit_pending((struct sock *)*key, value);
	return 0;
}

SEC("iter/bpf_map_elem")
int list_held_elem(struct bpf_iter__bpf_map_elem *ctx)
{
	__u64 *key = ctx->key;
	__u64 thread;

	if (!key)
		return 0;
	thread = *key;
	kt_emit_left(bpf_map_lookup_elem(KT_MAP(calls), &thread));
	return 0;
}

#endif
