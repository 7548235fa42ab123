/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Programs at the return of the functions that every send and receive of an internet
 * socket passes: inet_sendmsg() and its relatives, whose arguments have been the same
 * since v5.3. Their msghdr is in the kernel and names the peer. Trampolines exist on x86
 * since v5.5 and on arm64 since v6.4.
 *
 * A receive that began before the programs were attached returns without them.
 */
#ifndef KTRACE_FEXIT_BPF_H
#define KTRACE_FEXIT_BPF_H

/* Remembers whether a datagram was corked before the call: its end does not show it. */
static __always_inline int kt_inet_send_begin(const struct sock *sk)
{
	struct kt_thread *thread;

	if (kt_protocol(true, sk) != IPPROTO_UDP)
		return 0;
	thread = kt_thread();
	if (thread)
		thread->cork = BPF_CORE_READ((const struct udp_sock *)sk, pending);
	return 0;
}

/* The flags that the process passed. The kernel adds MSG_BATCH for sendmmsg(), and
 * MSG_DONTWAIT if the descriptor does not block. */
static __always_inline __u32 kt_sent_flags(const struct socket *sock, const struct msghdr *msg)
{
	__u32 flags = msg->msg_flags & ~(MSG_BATCH | MSG_CMSG_COMPAT);

	if (sock->file && sock->file->f_flags & O_NONBLOCK)
		flags &= ~MSG_DONTWAIT;
	return flags;
}

static __always_inline int kt_inet_sent(int copy, struct socket *sock, struct msghdr *msg, int ret)
{
	enum kt_data kind = kt_sent_kind(true, sock->sk, ret);
	struct kt_thread *thread = kind < KT_DATA_KINDS ? kt_thread() : NULL;
	struct kt_name name = {
		.address = (__u64)msg->msg_name,
		.length = msg->msg_namelen,
		.in_kernel = true,
	};

	if (kind == KT_DATA_KINDS || !kt_turn(thread, KT_PAIR_SEND, copy))
		return 0;
	if (kind == KT_DATA_TCP_SEND)
		kt_tcp_data(true, sock->sk, ret, true);
	else
		kt_udp_sent(true, sock->sk, ret, kt_sent_flags(sock, msg), &name,
			    thread ? thread->cork : 0);
	kt_data_handled(thread, KT_PAIR_SEND, copy, kind);
	return 0;
}

static __always_inline int kt_inet_received(int copy, struct socket *sock, struct msghdr *msg,
					    __u32 flags, int ret)
{
	enum kt_data kind = kt_received_kind(true, sock->sk, ret, flags);
	struct kt_thread *thread = kind < KT_DATA_KINDS ? kt_thread() : NULL;
	struct kt_name name = {
		.address = (__u64)msg->msg_name,
		.length = msg->msg_namelen,
		.in_kernel = true,
	};

	if (kind == KT_DATA_KINDS || !kt_turn(thread, KT_PAIR_RECV, copy))
		return 0;
	if (kind == KT_DATA_TCP_RECV)
		kt_tcp_data(true, sock->sk, ret, false);
	else
		kt_udp_received(true, sock->sk, ret, flags, &name);
	kt_data_handled(thread, KT_PAIR_RECV, copy, kind);
	return 0;
}

#define KT_INET_SEND(prefix)                                                                      \
	SEC("fentry/" #prefix "_sendmsg")                                                         \
	int BPF_PROG(prefix##_send_begin, struct socket *sock)                                    \
	{                                                                                         \
		return kt_inet_send_begin(sock->sk);                                              \
	}                                                                                         \
	SEC("fexit/" #prefix "_sendmsg")                                                          \
	int BPF_PROG(prefix##_send_count, struct socket *sock, struct msghdr *msg, __u64 size,    \
		     int ret)                                                                     \
	{                                                                                         \
		return kt_count_data(kt_sent_kind(true, sock->sk, ret));                          \
	}                                                                                         \
	SEC("fexit/" #prefix "_sendmsg")                                                          \
	int BPF_PROG(prefix##_send, struct socket *sock, struct msghdr *msg, __u64 size, int ret) \
	{                                                                                         \
		return kt_inet_sent(0, sock, msg, ret);                                           \
	}                                                                                         \
	SEC("fexit/" #prefix "_sendmsg")                                                          \
	int BPF_PROG(prefix##_send_nested, struct socket *sock, struct msghdr *msg, __u64 size,   \
		     int ret)                                                                     \
	{                                                                                         \
		return kt_inet_sent(1, sock, msg, ret);                                           \
	}

#define KT_INET_RECV(prefix)                                                                    \
	SEC("fexit/" #prefix "_recvmsg")                                                        \
	int BPF_PROG(prefix##_recv_count, struct socket *sock, struct msghdr *msg, __u64 size,  \
		     int flags, int ret)                                                        \
	{                                                                                       \
		return kt_count_data(kt_received_kind(true, sock->sk, ret, flags));             \
	}                                                                                       \
	SEC("fexit/" #prefix "_recvmsg")                                                        \
	int BPF_PROG(prefix##_recv, struct socket *sock, struct msghdr *msg, __u64 size,        \
		     int flags, int ret)                                                        \
	{                                                                                       \
		return kt_inet_received(0, sock, msg, flags, ret);                              \
	}                                                                                       \
	SEC("fexit/" #prefix "_recvmsg")                                                        \
	int BPF_PROG(prefix##_recv_nested, struct socket *sock, struct msghdr *msg, __u64 size, \
		     int flags, int ret)                                                        \
	{                                                                                       \
		return kt_inet_received(1, sock, msg, flags, ret);                              \
	}

KT_INET_SEND(inet)
KT_INET_SEND(inet6)
KT_INET_RECV(inet)
KT_INET_RECV(inet6)

/* Errors of sockets before v5.14 (e3ae2365efc1), which added tp_btf/inet_sk_error_report. */
SEC("fentry/sock_def_error_report")
int BPF_PROG(error_report, const struct sock *sk)
{
	return kt_error_reported(true, sk);
}

#endif
