/* SPDX-License-Identifier: GPL-2.0-only */
/* Reads addresses and sockets from kernel objects, user memory and descriptors. */
#ifndef KTRACE_SOCK_BPF_H
#define KTRACE_SOCK_BPF_H

/* The fields of sockaddr_in and of sockaddr_in6 in one struct. */
struct kt_sockaddr {
	__u16 family;
	__be16 port;
	__be32 v4; /* IPv6: flow label */
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

/* Shows an IPv6 socket with an IPv4 peer as IPv4, and its address :: as 0.0.0.0. */
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

/* The protocol of an internet socket, IPPROTO_*; 0 for any other socket. */
static __always_inline __u16 kt_protocol(bool typed, const struct sock *sk)
{
	if (!kt_is_inet(KT_READ(typed, sk, __sk_common.skc_family)))
		return 0;
	return KT_READ(typed, sk, sk_protocol);
}

/*
 * Fields behind a pointer with a BTF type are read by plain loads. Behind any other
 * pointer each read is a helper call of about 50 ns, so a part of the object is copied
 * once, and the fields are read from the copy at the offsets of the running kernel.
 */
#define KT_COMMON_LEN 144 /* of struct sock_common, at least up to skc_cookie */
#define KT_SOCKET_LEN 32  /* of struct socket, at least up to sk */
#define KT_FIELD(copy, type, field) \
	(*(typeof(((type *)0)->field) *)((copy) + bpf_core_field_offset(type, field)))

static __always_inline void kt_put_addr6(const struct in6_addr *from, __u8 addr[16])
{
	__u32 *word = (__u32 *)addr;

	word[0] = from->in6_u.u6_addr32[0];
	word[1] = from->in6_u.u6_addr32[1];
	word[2] = from->in6_u.u6_addr32[2];
	word[3] = from->in6_u.u6_addr32[3];
}

/* Copies one field of a sock_common: from the copy, or in the basic object from the kernel. */
#ifdef KT_BASIC
#define KT_COMMON(to, field) bpf_core_read(to, sizeof(*(to)), &skc->field)
#else
#define KT_COMMON(to, field) \
	__builtin_memcpy(to, copy + bpf_core_field_offset(struct sock_common, field), sizeof(*(to)))
#endif

/*
 * The read of kt_read_common() without BTF types. It is not inlined, and the basic object
 * reads each field by itself: the verifier adds up the frames of all functions on
 * the way, and a copy would take a third of the 512 bytes.
 */
static __noinline int kt_copy_common(const struct sock_common *skc, struct kt_tuple *t)
{
#ifndef KT_BASIC
	__u8 copy[KT_COMMON_LEN];
#endif
	struct net *net = NULL;
	__u16 family = 0;
	__be16 port = 0;
	__be32 v4 = 0;

#ifndef KT_BASIC
	if (bpf_probe_read_kernel(copy, sizeof(copy), skc))
		return -1;
#endif
	KT_COMMON(&net, skc_net.net);
	t->ns_net = BPF_CORE_READ(net, ns.inum);
	KT_COMMON(&t->lport, skc_num);
	KT_COMMON(&port, skc_dport);
	t->rport = bpf_ntohs(port);
	KT_COMMON(&family, skc_family);
	if (family == AF_INET) {
		t->family = 4;
		KT_COMMON(&v4, skc_rcv_saddr);
		kt_set_v4(t->local, v4);
		KT_COMMON(&v4, skc_daddr);
		kt_set_v4(t->remote, v4);
		return 0;
	}
	t->family = 6;
	KT_COMMON(&t->local, skc_v6_rcv_saddr);
	KT_COMMON(&t->remote, skc_v6_daddr);
	return 0;
}

/* Reads the tuple from the part that full, request and timewait sockets share. `typed`
 * is a constant: whether the verifier knows the BTF type of skc. */
static __always_inline void kt_read_common(bool typed, const struct sock_common *skc,
					   struct kt_tuple *t)
{
	__builtin_memset(t, 0, sizeof(*t));
	if (!typed) {
		if (kt_copy_common(skc, t))
			return;
	} else {
		t->ns_net = skc->skc_net.net->ns.inum;
		t->lport = skc->skc_num;
		t->rport = bpf_ntohs(skc->skc_dport);
		if (skc->skc_family == AF_INET) {
			t->family = 4;
			kt_set_v4(t->local, skc->skc_rcv_saddr);
			kt_set_v4(t->remote, skc->skc_daddr);
		} else {
			t->family = 6;
			kt_put_addr6(&skc->skc_v6_rcv_saddr, t->local);
			kt_put_addr6(&skc->skc_v6_daddr, t->remote);
		}
	}
	if (t->rport)
		t->peer_source = KT_PEER_SOCKET;
	kt_normalize(t);
}

/*
 * tcp_set_state() releases skc_num (inet_put_port) before it reports the change to
 * CLOSE; inet_sport remains. It also remains while the socket starts a new attempt that
 * has no port yet, so it is read only if the attempt had a port.
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

/*
 * The ID of a socket in rows: its cookie, which is generated if it has none yet. A program
 * without typed pointers cannot generate it (bpf_get_socket_cookie() is for tracing
 * programs with BTF) and uses the inode number of the socket instead; 0 if the socket has
 * no file, as before accept().
 */
static __always_inline __u64 kt_sock_id(bool typed, struct sock *sk)
{
	__u64 cookie, inode;

#ifndef KT_BASIC
	if (typed)
		return bpf_get_socket_cookie(sk);
#endif
	cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (cookie)
		return cookie;
	inode = BPF_CORE_READ(sk, sk_socket, file, f_inode, i_ino);
	return inode ? inode | KT_SOCK_INODE : 0;
}

/* A socket address of a system call: a sockaddr in user memory, or its copy in the kernel. */
struct kt_name {
	__u64 address; /* 0: the call has none */
	__u64 length;
	bool in_kernel;
	__u8 pad[7];
};

static __always_inline long kt_read_name(const struct kt_name *name, void *to, __u32 length)
{
	return name->in_kernel ? bpf_probe_read_kernel(to, length, (void *)name->address)
			       : bpf_probe_read_user(to, length, (void *)name->address);
}

/* Copies the address of a call to the tuple. Returns false if the address is incomplete or
 * does not fit the socket. */
static __always_inline bool kt_read_peer(const struct kt_name *name, struct kt_tuple *t)
{
	struct kt_sockaddr sa = {};

	if (!name->address || name->length < KT_SOCKADDR_IN_LEN ||
	    kt_read_name(name, &sa, KT_SOCKADDR_IN_LEN))
		return false;
	if (sa.family == AF_INET || (sa.family == AF_UNSPEC && t->family == 4)) {
		kt_set_v4(t->remote, sa.v4);
	} else if (sa.family == AF_INET6 && name->length >= KT_SOCKADDR_IN6_LEN) {
		if (kt_read_name(name, &sa, KT_SOCKADDR_IN6_LEN))
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

static __always_inline bool kt_read_user_peer(__u64 address, __u64 length, struct kt_tuple *t)
{
	struct kt_name name = { .address = address, .length = length };

	return kt_read_peer(&name, t);
}

/* Returns the sk behind a descriptor of the current task if it is an internet socket of
 * this protocol, else NULL. `state` is set to the state of its struct socket, SS_*. */
static __always_inline struct sock *kt_inet_sk(int fd, __u16 protocol, socket_state *state)
{
	struct files_struct *files = KT_READ(KT_MODERN, kt_current(), files);
	struct fdtable *fdt = KT_READ(KT_MODERN, files, fdt);
	__u8 copy[KT_SOCKET_LEN];
	struct file *file = NULL;
	struct sock *sk;

	if (fd < 0 || (unsigned int)fd >= KT_READ(KT_MODERN, fdt, max_fds))
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), KT_READ(KT_MODERN, fdt, fd) + fd);
	/* The private data point back to the file only if it is a socket. */
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
