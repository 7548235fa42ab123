/* SPDX-License-Identifier: GPL-2.0-only */
/* Reads addresses and sockets from kernel objects, user memory and descriptors. */
#ifndef KTRACE_SOCK_BPF_H
#define KTRACE_SOCK_BPF_H

struct kt_sockaddr {
	__u16 family;
	__be16 port;
	__be32 v4; /* flow label in IPv6 */
	__be32 v6[4];
};

#define KT_SOCKADDR_IN_LEN 8   /* up to the end of sin_addr */
#define KT_SOCKADDR_IN6_LEN 24 /* up to the end of sin6_addr */

static __always_inline void kt_set_v4(__u8 addr[16], __be32 v4)
{
	__u32 *word = (__u32 *)addr;

	word[0] = 0;
	word[1] = 0;
	word[2] = bpf_htonl(0xffff);
	word[3] = v4;
}

static __always_inline bool kt_is_v4_mapped(const __u8 addr[16])
{
	const __u32 *word = (const __u32 *)addr;

	return !word[0] && !word[1] && word[2] == bpf_htonl(0xffff);
}

static __always_inline bool kt_is_any6(const __u8 addr[16])
{
	const __u64 *half = (const __u64 *)addr;

	return !half[0] && !half[1];
}

static __always_inline bool kt_same_addr(const __u8 a[16], const __u8 b[16])
{
	const __u32 *left = (const __u32 *)a, *right = (const __u32 *)b;

	return left[0] == right[0] && left[1] == right[1] && left[2] == right[2] &&
	       left[3] == right[3];
}

/* IPv6 sockets that speak to an IPv4 peer are shown as IPv4, with :: as 0.0.0.0. */
static __always_inline void kt_normalize(struct kt_tuple *t)
{
	if (t->family != 6 || !(kt_is_v4_mapped(t->remote) || kt_is_v4_mapped(t->local)))
		return;
	t->family = 4;
	if (kt_is_any6(t->local))
		kt_set_v4(t->local, 0);
	if (kt_is_any6(t->remote))
		kt_set_v4(t->remote, 0);
}

static __always_inline bool kt_is_inet(__u16 family)
{
	return family == AF_INET || family == AF_INET6;
}

static __always_inline bool kt_is_tcp(const struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_TCP && kt_is_inet(sk->__sk_common.skc_family);
}

/*
 * A pointer that the verifier knows by its BTF type is read by plain loads. Any
 * other costs a helper call of some 50 ns, so of those a whole piece is copied
 * once, and the fields are taken from the copy at the running kernel's offsets.
 */
#define KT_COMMON_LEN 144 /* of struct sock_common, up to skc_cookie and beyond */
#define KT_SOCKET_LEN 32  /* of struct socket, up to sk */
#define KT_FIELD(copy, type, field) \
	(*(typeof(((type *)0)->field) *)((copy) + bpf_core_field_offset(type, field)))
#define KT_COMMON(field) (typed ? skc->field : KT_FIELD(copy, struct sock_common, field))

static __always_inline void kt_put_addr6(const struct in6_addr *from, __u8 addr[16])
{
	__u32 *word = (__u32 *)addr;

	word[0] = from->in6_u.u6_addr32[0];
	word[1] = from->in6_u.u6_addr32[1];
	word[2] = from->in6_u.u6_addr32[2];
	word[3] = from->in6_u.u6_addr32[3];
}

/* Of the part that full, request and timewait sockets share. `typed` is constant. */
static __always_inline void kt_read_common(bool typed, const struct sock_common *skc,
					   struct kt_tuple *t)
{
	__u8 copy[KT_COMMON_LEN];
	struct net *net;

	__builtin_memset(t, 0, sizeof(*t));
	if (!typed && bpf_probe_read_kernel(copy, sizeof(copy), skc))
		return;
	net = KT_COMMON(skc_net.net);
	t->ns_net = typed ? net->ns.inum : BPF_CORE_READ(net, ns.inum);
	t->lport = KT_COMMON(skc_num);
	t->rport = bpf_ntohs(KT_COMMON(skc_dport));
	if (KT_COMMON(skc_family) == AF_INET) {
		t->family = 4;
		kt_set_v4(t->local, KT_COMMON(skc_rcv_saddr));
		kt_set_v4(t->remote, KT_COMMON(skc_daddr));
	} else if (typed) {
		t->family = 6;
		kt_put_addr6(&skc->skc_v6_rcv_saddr, t->local);
		kt_put_addr6(&skc->skc_v6_daddr, t->remote);
	} else {
		t->family = 6;
		__builtin_memcpy(t->local,
				 copy + bpf_core_field_offset(struct sock_common, skc_v6_rcv_saddr),
				 16);
		__builtin_memcpy(t->remote,
				 copy + bpf_core_field_offset(struct sock_common, skc_v6_daddr),
				 16);
	}
	if (t->rport)
		t->peer_source = KT_PEER_SOCKET;
	kt_normalize(t);
}

/*
 * skc_num is given back before the change to CLOSE is told (tcp_set_state ->
 * inet_put_port); inet_sport stays. It stays also while the socket begins to connect
 * anew and has no port yet, so it is asked only where an attempt got one.
 */
static __always_inline void kt_read_last_port(const struct sock *sk, struct kt_tuple *t)
{
	if (!t->lport)
		t->lport = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
}

static __always_inline void kt_read_tuple(bool typed, const struct sock *sk, struct kt_tuple *t)
{
	kt_read_common(typed, &sk->__sk_common, t);
	kt_read_last_port(sk, t);
}

/* Put the address that a call names into the tuple. False where user memory
 * does not hold a whole address of this socket's kind. */
static __always_inline bool kt_read_user_peer(__u64 name, __u64 namelen, struct kt_tuple *t)
{
	struct kt_sockaddr sa = {};

	if (!name || namelen < KT_SOCKADDR_IN_LEN ||
	    bpf_probe_read_user(&sa, KT_SOCKADDR_IN_LEN, (void *)name))
		return false;
	if (sa.family == AF_INET || (sa.family == AF_UNSPEC && t->family == 4)) {
		kt_set_v4(t->remote, sa.v4);
	} else if (sa.family == AF_INET6 && namelen >= KT_SOCKADDR_IN6_LEN) {
		if (bpf_probe_read_user(&sa, KT_SOCKADDR_IN6_LEN, (void *)name))
			return false;
		t->family = 6;
		__builtin_memcpy(t->remote, sa.v6, 16);
	} else {
		return false;
	}
	t->rport = bpf_ntohs(sa.port);
	t->peer_source = KT_PEER_CALL;
	kt_normalize(t);
	return true;
}

/* The sk behind a descriptor of the current task where it is an internet socket of
 * this protocol, else NULL. `state` is the socket's own, SS_*. */
static __always_inline struct sock *kt_inet_sk(int fd, __u16 protocol, socket_state *state)
{
	struct fdtable *fdt = bpf_get_current_task_btf()->files->fdt;
	__u8 copy[KT_SOCKET_LEN];
	struct file *file = NULL;
	struct sock *sk;

	if (fd < 0 || (unsigned int)fd >= fdt->max_fds)
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), fdt->fd + fd);
	/* Only a socket's private data point back to the file. */
	if (!file || bpf_probe_read_kernel(copy, sizeof(copy), BPF_CORE_READ(file, private_data)) ||
	    KT_FIELD(copy, struct socket, file) != file)
		return NULL;
	*state = KT_FIELD(copy, struct socket, state);
	sk = KT_FIELD(copy, struct socket, sk);
	if (!sk || BPF_CORE_READ(sk, sk_protocol) != protocol ||
	    !kt_is_inet(BPF_CORE_READ(sk, __sk_common.skc_family)))
		return NULL;
	return sk;
}

#endif
