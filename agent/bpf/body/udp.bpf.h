/* SPDX-License-Identifier: GPL-2.0-only */
/* UDP sends and receives, with the peer that the system call names. */
#ifndef KTRACE_UDP_BPF_H
#define KTRACE_UDP_BPF_H

#define KT_MMSGHDR_SIZE 64
#define KT_MSG_NAMELEN 8 /* offset of msg_namelen in struct msghdr */

/* `family` is that of the datagram: an IPv6 socket may cork an IPv4 datagram. The
 * destination remains in the socket after the last part is sent. */
static __always_inline void kt_read_cork(struct sock *sk, int family, struct kt_tuple *t)
{
	struct inet_sock *inet = (struct inet_sock *)sk;

	if (family == AF_INET6) {
		bpf_core_read(t->remote, 16, &inet->cork.fl.u.ip6.daddr);
		t->rport = bpf_ntohs(BPF_CORE_READ(inet, cork.fl.u.ip6.uli.ports.dport));
	} else {
		kt_set_v4(t->remote, BPF_CORE_READ(inet, cork.fl.u.ip4.daddr));
		t->rport = bpf_ntohs(BPF_CORE_READ(inet, cork.fl.u.ip4.uli.ports.dport));
	}
	t->peer_source = KT_PEER_CORK;
	kt_normalize(t);
}

/* Reads the name from the msghdr of a call, or from the current one of its array. */
static __always_inline void kt_msg_name(const struct kt_call *call, __u64 *name, __u64 *namelen)
{
	__u64 msg = call->name;
	__u32 length = 0;

	if (call->kind == KT_CALL_SENDMMSG || call->kind == KT_CALL_RECVMMSG)
		msg += (__u64)call->index * KT_MMSGHDR_SIZE;
	*name = 0;
	bpf_probe_read_user(name, sizeof(*name), (void *)msg);
	bpf_probe_read_user(&length, sizeof(length), (void *)(msg + KT_MSG_NAMELEN));
	*namelen = length;
}

static __always_inline struct kt_call *kt_udp_call(struct sock *sk, __u8 first, __u8 last)
{
	struct kt_call *call = kt_call_get();

	if (!call || call->sk != (__u64)sk || call->kind < first || call->kind > last)
		return NULL;
	return call;
}

/*
 * Emits a send. `cork` is the family of the datagram that was corked before the call, 0 if
 * none. A corked datagram keeps its first destination (udp_sendmsg, do_append_data); the
 * address of a later call is ignored.
 */
static __always_inline void kt_udp_sent(bool typed, struct sock *sk, int ret, __u32 flags,
					const struct kt_name *name, int cork)
{
	int corked = BPF_CORE_READ((struct udp_sock *)sk, pending);
	struct kt_tuple t;

	kt_read_tuple(typed, sk, &t);
	if (corked)
		flags |= KT_FLAG_CORKED;
	if (corked || cork)
		kt_read_cork(sk, corked ?: cork, &t);
	else
		kt_read_peer(name, &t);
	kt_emit_udp(KT_UDP_SEND, &t, bpf_ktime_get_boot_ns(), kt_sock_id(typed, sk), ret, flags);
}

/* A send whose destination, if it has one, is in the user memory of its system call. */
static __always_inline void kt_udp_sent_by_call(struct sock *sk, int ret)
{
	struct kt_call *call = kt_udp_call(sk, KT_CALL_SENDTO, KT_CALL_SENDMMSG);
	struct kt_name name = {};

	if (!call) {
		kt_udp_sent(true, sk, ret, 0, &name, 0);
		return;
	}
	if (call->kind == KT_CALL_SENDTO) {
		name.address = call->name;
		name.length = sizeof(struct kt_sockaddr);
	} else {
		kt_msg_name(call, &name.address, &name.length);
	}
	kt_udp_sent(true, sk, ret, call->flags & ~KT_FLAG_CORKED, &name, call->pending);
	call->index++;
	call->pending = BPF_CORE_READ((struct udp_sock *)sk, pending);
}

static __always_inline int kt_udp_send_end(void)
{
	if (kt_call_get())
		kt_call_end();
	return 0;
}

static __always_inline int kt_udp_send_begin(__u8 kind, int fd, __u64 name, __u32 flags)
{
	socket_state state;
	struct sock *sk = kt_inet_sk(fd, IPPROTO_UDP, &state);
	struct kt_call *call;
	int pending;

	if (!sk)
		return 0;
	pending = BPF_CORE_READ((struct udp_sock *)sk, pending);
	/* Nothing to keep: the socket itself holds all that the row needs. */
	if (!name && !pending && !flags)
		return 0;
	call = kt_call_begin(kind, sk, name, flags);
	if (call)
		call->pending = pending;
	return 0;
}

/* Emits the held datagram: its sender's address is in user memory now. */
static __always_inline void kt_udp_recv_finish(struct kt_call *call)
{
	struct kt_datagram *d = &call->datagram;

	call->held = 0;
	kt_read_user_peer(d->name, d->namelen, &d->tuple);
	kt_emit_held(d);
}

/* Emits a receive. An error took no datagram, so it has no sender. */
static __always_inline void kt_udp_received(bool typed, struct sock *sk, int ret, __u32 flags,
					    const struct kt_name *name)
{
	struct kt_tuple t;

	kt_read_tuple(typed, sk, &t);
	if (ret >= 0)
		kt_read_peer(name, &t);
	kt_emit_udp(KT_UDP_RECV, &t, bpf_ktime_get_boot_ns(), kt_sock_id(typed, sk), ret, flags);
}

/* The kernel copies the sender's address to user memory only after this program. It is
 * read at the next message of the same call, or at its exit. */
static __always_inline void kt_udp_hold(struct kt_call *call, struct sock *sk, int ret, __u32 flags,
					const struct kt_name *name)
{
	struct kt_datagram *d = &call->datagram;

	call->held = 1;
	d->name = name->address;
	d->namelen = name->length;
	d->ts = bpf_ktime_get_boot_ns();
	d->cookie = kt_sock_id(true, sk);
	d->bytes = ret;
	d->flags = flags;
	kt_read_tuple(true, sk, &d->tuple);
	kt_read_current(&d->owner, KT_OWNER_PROCESS);
}

static __always_inline void kt_udp_received_by_call(struct sock *sk, int ret, __u32 flags)
{
	struct kt_call *call = kt_udp_call(sk, KT_CALL_RECVFROM, KT_CALL_RECVMMSG);
	struct kt_name name = {};

	if (call && call->held)
		kt_udp_recv_finish(call);
	if (call && ret >= 0 && call->kind == KT_CALL_RECVFROM) {
		__u32 length = 0;

		name.address = call->name;
		bpf_probe_read_user(&length, sizeof(length), (void *)call->namelen);
		name.length = length;
	} else if (call && ret >= 0) {
		kt_msg_name(call, &name.address, &name.length);
		call->index++;
	}
	if (call && name.address)
		kt_udp_hold(call, sk, ret, flags, &name);
	else
		kt_udp_received(true, sk, ret, flags, &name);
}

static __always_inline int kt_udp_recv_end(void)
{
	struct kt_call *call = kt_call_get();

	if (!call)
		return 0;
	if (call->held)
		kt_udp_recv_finish(call);
	kt_call_end();
	return 0;
}

static __always_inline int kt_udp_recv_begin(__u8 kind, int fd, __u64 name, __u64 namelen)
{
	socket_state state;
	struct sock *sk = kt_inet_sk(fd, IPPROTO_UDP, &state);
	struct kt_call *call;

	if (!sk)
		return 0;
	call = kt_call_begin(kind, sk, name, 0);
	if (call)
		call->namelen = namelen;
	return 0;
}

#endif
