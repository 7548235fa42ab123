/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The owner of a socket: the process that acts on it (connect, listen, accept, send,
 * receive) or holds a descriptor of it in the inventory. Softirq runs on an unrelated
 * task, which never becomes the owner.
 */
#ifndef KTRACE_OWNER_BPF_H
#define KTRACE_OWNER_BPF_H

KT_DEFINE_ZERO(kt_sock);

KT_DEFINE_ZERO(kt_owner);

static __always_inline struct kt_sock *kt_sock_get(const struct sock *sk)
{
	__u64 key = (__u64)sk;

	return bpf_map_lookup_elem(KT_MAP(socks), &key);
}

static __always_inline struct kt_sock *kt_sock_add(const struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct kt_sock *s;

	bpf_map_update_elem(KT_MAP(socks), &key, KT_ZERO(kt_sock), BPF_NOEXIST);
	s = bpf_map_lookup_elem(KT_MAP(socks), &key);
	if (!s) {
		struct kt_overflow *o = kt_overflow();

		kt_shared.socks_full = 1;
		if (o)
			kt_add(o->socks, 1);
	}
	return s;
}

/*
 * Whether the entry belongs to an earlier socket at the same address, whose destruction
 * was missed. The cookie of an entry was read from its socket, so a socket with another
 * cookie, or without one yet, is a different socket.
 */
static __always_inline bool kt_is_stale(const struct kt_sock *s, __u64 cookie)
{
	return s->cookie && !(s->cookie & KT_SOCK_INODE) && s->cookie != cookie;
}

/* Returns the entry unless it belongs to an earlier socket at this address, else NULL. */
static __always_inline struct kt_sock *kt_sock_live(const struct sock *sk, __u64 cookie)
{
	struct kt_sock *s = kt_sock_get(sk);

	return s && kt_is_stale(s, cookie) ? NULL : s;
}

static __always_inline void kt_listener_key_of(const struct kt_tuple *t, const __u8 addr[16],
					       struct kt_listener_key *key)
{
	__builtin_memset(key, 0, sizeof(*key));
	__builtin_memcpy(key->addr, addr, 16);
	key->ns_net = t->ns_net;
	key->port = t->lport;
}

static __always_inline void kt_listener_add(const struct sock *sk, const struct kt_tuple *t)
{
	struct kt_listener fresh = { .sk = (__u64)sk };
	struct kt_listener_key key;
	struct kt_listener *old;

	kt_listener_key_of(t, t->local, &key);
	if (!bpf_map_update_elem(KT_MAP(listeners), &key, &fresh, BPF_NOEXIST))
		return;
	old = bpf_map_lookup_elem(KT_MAP(listeners), &key);
	if (old && old->sk != fresh.sk)
		old->shared = 1;
}

static __always_inline void kt_listener_del(const struct sock *sk, const struct kt_tuple *t)
{
	struct kt_listener_key key;
	struct kt_listener *old;

	kt_listener_key_of(t, t->local, &key);
	old = bpf_map_lookup_elem(KT_MAP(listeners), &key);
	if (old && old->sk == (__u64)sk)
		bpf_map_delete_elem(KT_MAP(listeners), &key);
}

/* Returns the listener of a child: the child's own address is tried first, then the
 * wildcards, as in the kernel's lookup. Returns NULL if several listeners share it. */
static __always_inline struct kt_sock *kt_listener_of(const struct kt_tuple *t)
{
	struct kt_listener_key key;
	struct kt_listener *l;

	kt_listener_key_of(t, t->local, &key);
	l = bpf_map_lookup_elem(KT_MAP(listeners), &key);
	if (!l && t->family == 4) { /* 0.0.0.0 does not accept IPv6 */
		kt_set_v4(key.addr, 0);
		l = bpf_map_lookup_elem(KT_MAP(listeners), &key);
	}
	if (!l) {
		__builtin_memset(key.addr, 0, 16);
		l = bpf_map_lookup_elem(KT_MAP(listeners), &key);
	}
	if (!l || l->shared)
		return NULL;
	return bpf_map_lookup_elem(KT_MAP(socks), &l->sk);
}

static __always_inline void kt_own_by_listener(struct kt_sock *s, const struct kt_tuple *t)
{
	struct kt_sock *listener = kt_listener_of(t);

	s->role = KT_ROLE_SERVER;
	if (!listener || listener->owner.source == KT_OWNER_NONE)
		return;
	s->owner = listener->owner;
	s->owner.source = KT_OWNER_LISTENER;
}

/* The current task sent or received, so its process owns the socket from now on. */
static __always_inline void kt_own_by_use(struct kt_sock *s)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;

	if (s->owner.tgid == tgid &&
	    (s->owner.source == KT_OWNER_PROCESS || s->owner.source == KT_OWNER_ACCEPT))
		return;
	if (!kt_in_kthread())
		kt_read_current(&s->owner, KT_OWNER_PROCESS);
}

#endif
