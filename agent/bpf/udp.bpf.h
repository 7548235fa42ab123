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

static __always_inline void kt_udp_send(struct sock *sk, int ret)
{
	struct kt_call *call = kt_udp_call(sk, KT_CALL_SENDTO, KT_CALL_SENDMMSG);
	int corked = BPF_CORE_READ((struct udp_sock *)sk, pending);
	__u64 name = 0, namelen = sizeof(struct kt_sockaddr);
	__u32 flags = 0;
	struct kt_tuple t;

	kt_read_tuple(true, sk, &t);
	if (call) {
		if (call->kind == KT_CALL_SENDTO)
			name = call->name;
		else
			kt_msg_name(call, &name, &namelen);
		flags = call->flags & ~KT_FLAG_CORKED;
	}
	if (corked)
		flags |= KT_FLAG_CORKED;
	/* A corked datagram keeps its first destination (udp_sendmsg,
	 * do_append_data); the address of a later call is ignored. */
	if (corked)
		kt_read_cork(sk, corked, &t);
	else if (call && call->pending)
		kt_read_cork(sk, call->pending, &t);
	else if (name)
		kt_read_user_peer(name, namelen, &t);
	if (call) {
		call->index++;
		call->pending = corked;
	}
	kt_emit_udp(KT_UDP_SEND, &t, bpf_ktime_get_boot_ns(), bpf_get_socket_cookie(sk), ret,
		    flags);
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

SEC("tracepoint/syscalls/sys_enter_sendto")
int enter_sendto(struct kt_sys_enter *ctx)
{
	return kt_udp_send_begin(KT_CALL_SENDTO, ctx->args[0], ctx->args[4], ctx->args[3]);
}

SEC("tracepoint/syscalls/sys_enter_sendmsg")
int enter_sendmsg(struct kt_sys_enter *ctx)
{
	return kt_udp_send_begin(KT_CALL_SENDMSG, ctx->args[0], ctx->args[1], ctx->args[2]);
}

SEC("tracepoint/syscalls/sys_enter_sendmmsg")
int enter_sendmmsg(struct kt_sys_enter *ctx)
{
	return kt_udp_send_begin(KT_CALL_SENDMMSG, ctx->args[0], ctx->args[1], ctx->args[3]);
}

SEC("tracepoint/syscalls/sys_exit_sendto")
int exit_sendto(struct kt_sys_exit *ctx)
{
	return kt_udp_send_end();
}

SEC("tracepoint/syscalls/sys_exit_sendmsg")
int exit_sendmsg(struct kt_sys_exit *ctx)
{
	return kt_udp_send_end();
}

SEC("tracepoint/syscalls/sys_exit_sendmmsg")
int exit_sendmmsg(struct kt_sys_exit *ctx)
{
	return kt_udp_send_end();
}

/* Emits the held datagram: its sender's address is in user memory now. */
static __always_inline void kt_udp_recv_finish(struct kt_call *call)
{
	struct kt_datagram *d = &call->datagram;

	call->held = 0;
	kt_read_user_peer(d->name, d->namelen, &d->tuple);
	kt_emit_held(d);
}

static __always_inline void kt_udp_recv(struct sock *sk, int ret, __u32 flags)
{
	struct kt_call *call = kt_udp_call(sk, KT_CALL_RECVFROM, KT_CALL_RECVMMSG);
	__u64 now = bpf_ktime_get_boot_ns();
	__u64 name = 0, namelen = 0;
	struct kt_datagram *d;
	struct kt_tuple t;

	if (call && call->held)
		kt_udp_recv_finish(call);
	/* An empty queue or a signal: no datagram, so no event. */
	if (ret == -EAGAIN || kt_is_restart(-(long)ret))
		return;
	kt_read_tuple(true, sk, &t);
	if (call && ret >= 0 && call->kind == KT_CALL_RECVFROM) {
		__u32 length = 0;

		name = call->name;
		bpf_probe_read_user(&length, sizeof(length), (void *)call->namelen);
		namelen = length;
	} else if (call && ret >= 0) {
		kt_msg_name(call, &name, &namelen);
		call->index++;
	}
	if (!call || !name) {
		kt_emit_udp(KT_UDP_RECV, &t, now, bpf_get_socket_cookie(sk), ret, flags);
		return;
	}
	/* The kernel copies the sender's address to user memory later. It is read
	 * at the next message of the same call, or at its exit. */
	call->held = 1;
	d = &call->datagram;
	d->name = name;
	d->namelen = namelen;
	d->ts = now;
	d->cookie = bpf_get_socket_cookie(sk);
	d->bytes = ret;
	d->flags = flags;
	d->tuple = t;
	kt_read_current(&d->owner, KT_OWNER_PROCESS);
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

SEC("tracepoint/syscalls/sys_enter_recvfrom")
int enter_recvfrom(struct kt_sys_enter *ctx)
{
	if (!ctx->args[4])
		return 0;
	return kt_udp_recv_begin(KT_CALL_RECVFROM, ctx->args[0], ctx->args[4], ctx->args[5]);
}

SEC("tracepoint/syscalls/sys_enter_recvmsg")
int enter_recvmsg(struct kt_sys_enter *ctx)
{
	return kt_udp_recv_begin(KT_CALL_RECVMSG, ctx->args[0], ctx->args[1], 0);
}

SEC("tracepoint/syscalls/sys_enter_recvmmsg")
int enter_recvmmsg(struct kt_sys_enter *ctx)
{
	return kt_udp_recv_begin(KT_CALL_RECVMMSG, ctx->args[0], ctx->args[1], 0);
}

SEC("tracepoint/syscalls/sys_exit_recvfrom")
int exit_recvfrom(struct kt_sys_exit *ctx)
{
	return kt_udp_recv_end();
}

SEC("tracepoint/syscalls/sys_exit_recvmsg")
int exit_recvmsg(struct kt_sys_exit *ctx)
{
	return kt_udp_recv_end();
}

SEC("tracepoint/syscalls/sys_exit_recvmmsg")
int exit_recvmmsg(struct kt_sys_exit *ctx)
{
	return kt_udp_recv_end();
}

#endif
