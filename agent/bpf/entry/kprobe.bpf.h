/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Programs on kernel functions by kprobe and kretprobe, for kernels without trampolines
 * (arm64 before v6.4). Pointers have no BTF type here. The arguments of a function are
 * kept in its thread until it returns.
 *
 * A kretprobe tracks a limited number of calls at once (maxactive); the return of any
 * further call is missed. The thread's next call shows it.
 */
#ifndef KTRACE_KPROBE_BPF_H
#define KTRACE_KPROBE_BPF_H

static __always_inline void kt_count_skipped(__u8 function)
{
	struct kt_overflow *o = kt_overflow();
	struct kt_counters *c = NULL;

	if (function == KT_FUNCTION_UDP_SEND || function == KT_FUNCTION_UDPV6_SEND)
		c = kt_hook(KT_UDP_SEND);
	else if (function == KT_FUNCTION_UDP_RECV || function == KT_FUNCTION_UDPV6_RECV)
		c = kt_hook(KT_UDP_RECV);
	else if (function == KT_FUNCTION_TCP_SEND && o)
		kt_add(o->skipped_tx_calls, 1);
	else if (function == KT_FUNCTION_TCP_RECV && o)
		kt_add(o->skipped_rx_calls, 1);
	if (!c)
		return;
	kt_add(c->seen, 1);
	kt_add(c->skipped, 1);
}

static __always_inline void kt_function_begin(__u8 function, struct sock *sk, void *msg,
					      __u32 flags)
{
	struct kt_thread *thread = kt_thread();

	if (!thread)
		return;
	if (thread->function)
		kt_count_skipped(thread->function);
	thread->function = function;
	thread->sk = (__u64)sk;
	thread->msg = (__u64)msg;
	thread->flags = flags;
}

/* Returns the thread if it returns from this function, whose arguments it holds. */
static __always_inline struct kt_thread *kt_function_end(__u8 function)
{
	struct kt_thread *thread = kt_thread();

	if (!thread || thread->function != function)
		return NULL;
	thread->function = KT_FUNCTION_NONE;
	return thread;
}

static __always_inline bool kt_has_family(const struct sock *sk, __u16 family)
{
	return BPF_CORE_READ(sk, __sk_common.skc_family) == family;
}

static __always_inline void kt_name_of(const struct kt_thread *thread, struct kt_name *name)
{
	struct msghdr *msg = (struct msghdr *)thread->msg;

	name->address = (__u64)BPF_CORE_READ(msg, msg_name);
	name->length = BPF_CORE_READ(msg, msg_namelen);
	name->in_kernel = true;
}

/* udpv6_sendmsg() calls udp_sendmsg() for an IPv4 destination: `family` tells whether this
 * function is the first one. */
static __always_inline int kt_udp_send_called(__u8 function, __u16 family, struct sock *sk,
					      struct msghdr *msg)
{
	struct kt_thread *thread;

	if (!kt_wants(KT_UDP_SEND) || !kt_has_family(sk, family))
		return 0;
	kt_function_begin(function, sk, msg, BPF_CORE_READ(msg, msg_flags));
	thread = kt_thread();
	if (thread)
		thread->cork = BPF_CORE_READ((struct udp_sock *)sk, pending);
	return 0;
}

static __always_inline int kt_udp_send_returned(__u8 function, int ret)
{
	struct kt_thread *thread = kt_function_end(function);
	struct kt_name name = {};
	struct sock *sk;
	__u32 flags;

	if (!thread)
		return 0;
	sk = (struct sock *)thread->sk;
	kt_name_of(thread, &name);
	flags = thread->flags & ~(MSG_BATCH | MSG_CMSG_COMPAT);
	if (BPF_CORE_READ(sk, sk_socket, file, f_flags) & O_NONBLOCK)
		flags &= ~MSG_DONTWAIT;
	kt_udp_sent(false, sk, ret, flags, &name, thread->cork);
	return 0;
}

static __always_inline int kt_udp_recv_called(__u8 function, __u16 family, struct sock *sk,
					      struct msghdr *msg, __u32 flags)
{
	if (kt_wants(KT_UDP_RECV) && kt_has_family(sk, family))
		kt_function_begin(function, sk, msg, flags);
	return 0;
}

static __always_inline int kt_udp_recv_returned(__u8 function, int ret)
{
	struct kt_thread *thread = kt_function_end(function);
	struct kt_name name = {};
	struct sock *sk;

	if (!thread)
		return 0;
	sk = (struct sock *)thread->sk;
	if (kt_received_kind(false, sk, ret, thread->flags) != KT_DATA_UDP_RECV)
		return 0;
	kt_name_of(thread, &name);
	name.length = sizeof(struct kt_sockaddr); /* inet_recvmsg() sets msg_namelen later */
	kt_udp_received(false, sk, ret, thread->flags, &name);
	return 0;
}

static __always_inline int kt_tcp_called(__u8 function, struct sock *sk, __u32 flags)
{
	if (!kt_excluded(false, sk))
		kt_function_begin(function, sk, NULL, flags);
	return 0;
}

static __always_inline int kt_tcp_returned(__u8 function, int ret)
{
	struct kt_thread *thread = kt_function_end(function);
	struct sock *sk;

	if (!thread)
		return 0;
	sk = (struct sock *)thread->sk;
	if (function == KT_FUNCTION_TCP_SEND) {
		if (kt_sent_kind(false, sk, ret) == KT_DATA_TCP_SEND)
			kt_tcp_data(false, sk, ret, true);
	} else if (kt_received_kind(false, sk, ret, thread->flags) == KT_DATA_TCP_RECV) {
		kt_tcp_data(false, sk, ret, false);
	}
	return 0;
}

SEC("kprobe/udp_sendmsg")
int BPF_KPROBE(udp_send_begin, struct sock *sk, struct msghdr *msg)
{
	return kt_udp_send_called(KT_FUNCTION_UDP_SEND, AF_INET, sk, msg);
}

SEC("kretprobe/udp_sendmsg")
int BPF_KRETPROBE(udp_send_end, int ret)
{
	return kt_udp_send_returned(KT_FUNCTION_UDP_SEND, ret);
}

SEC("kprobe/udpv6_sendmsg")
int BPF_KPROBE(udpv6_send_begin, struct sock *sk, struct msghdr *msg)
{
	return kt_udp_send_called(KT_FUNCTION_UDPV6_SEND, AF_INET6, sk, msg);
}

SEC("kretprobe/udpv6_sendmsg")
int BPF_KRETPROBE(udpv6_send_end, int ret)
{
	return kt_udp_send_returned(KT_FUNCTION_UDPV6_SEND, ret);
}

SEC("kprobe/tcp_sendmsg")
int BPF_KPROBE(tcp_send_begin, struct sock *sk)
{
	return kt_tcp_called(KT_FUNCTION_TCP_SEND, sk, 0);
}

SEC("kretprobe/tcp_sendmsg")
int BPF_KRETPROBE(tcp_send_end, int ret)
{
	return kt_tcp_returned(KT_FUNCTION_TCP_SEND, ret);
}

/* The flags are the fourth argument since v5.19 (ec095263a965, without `noblock`), and
 * were the fifth before. The number of arguments is in BTF, so user space selects the
 * matching programs. */
#define KT_RECV_BEGIN(name, noblock)                                                            \
	SEC("kprobe/udp_recvmsg")                                                               \
	int BPF_KPROBE(udp_recv_begin##name, struct sock *sk, struct msghdr *msg, __u64 size,   \
		       int fourth, int fifth)                                                   \
	{                                                                                       \
		return kt_udp_recv_called(KT_FUNCTION_UDP_RECV, AF_INET, sk, msg,               \
					  (noblock) ? fifth : fourth);                          \
	}                                                                                       \
	SEC("kprobe/udpv6_recvmsg")                                                             \
	int BPF_KPROBE(udpv6_recv_begin##name, struct sock *sk, struct msghdr *msg, __u64 size, \
		       int fourth, int fifth)                                                   \
	{                                                                                       \
		return kt_udp_recv_called(KT_FUNCTION_UDPV6_RECV, AF_INET6, sk, msg,            \
					  (noblock) ? fifth : fourth);                          \
	}                                                                                       \
	SEC("kprobe/tcp_recvmsg")                                                               \
	int BPF_KPROBE(tcp_recv_begin##name, struct sock *sk, struct msghdr *msg, __u64 size,   \
		       int fourth, int fifth)                                                   \
	{                                                                                       \
		return kt_tcp_called(KT_FUNCTION_TCP_RECV, sk, (noblock) ? fifth : fourth);     \
	}

#ifdef KT_BCC
KT_RECV_BEGIN(, KT_HAS_NOBLOCK)
#else
KT_RECV_BEGIN(, false)
KT_RECV_BEGIN(_noblock, true)
#endif

SEC("kretprobe/udp_recvmsg")
int BPF_KRETPROBE(udp_recv_end, int ret)
{
	return kt_udp_recv_returned(KT_FUNCTION_UDP_RECV, ret);
}

SEC("kretprobe/udpv6_recvmsg")
int BPF_KRETPROBE(udpv6_recv_end, int ret)
{
	return kt_udp_recv_returned(KT_FUNCTION_UDPV6_RECV, ret);
}

SEC("kretprobe/tcp_recvmsg")
int BPF_KRETPROBE(tcp_recv_end, int ret)
{
	return kt_tcp_returned(KT_FUNCTION_TCP_RECV, ret);
}

/* Not inlined: with constant states clang spills more than the stack of v5.10 holds. */
static __noinline int kt_state_probed(struct sock *sk, int old, int new)
{
	if (kt_protocol(false, sk) != IPPROTO_TCP)
		return 0;
	if (kt_state_excluded(false, sk, old, new))
		kt_filter_state(sk, old, new);
	else
		kt_state_change(false, sk, old, new);
	return 0;
}

/* The state is still the old one at the entry. */
SEC("kprobe/tcp_set_state")
int BPF_KPROBE(tcp_set_state, struct sock *sk, int state)
{
	return kt_state_probed(sk, BPF_CORE_READ(sk, __sk_common.skc_state), state);
}

/* Changes that do not pass tcp_set_state(): to LISTEN, and that of a listener's child. */
SEC("kprobe/inet_csk_listen_start")
int BPF_KPROBE(listen_begin, struct sock *sk)
{
	kt_function_begin(KT_FUNCTION_LISTEN, sk, NULL, 0);
	return 0;
}

SEC("kretprobe/inet_csk_listen_start")
int BPF_KRETPROBE(listen_end, int ret)
{
	struct kt_thread *thread = kt_function_end(KT_FUNCTION_LISTEN);

	if (thread && !ret)
		kt_state_probed((struct sock *)thread->sk, TCP_CLOSE, TCP_LISTEN);
	return 0;
}

SEC("kretprobe/inet_csk_clone_lock")
int BPF_KRETPROBE(child_born, struct sock *sk)
{
	return sk ? kt_state_probed(sk, TCP_LISTEN, TCP_SYN_RECV) : 0;
}

SEC("kprobe/sock_def_error_report")
int BPF_KPROBE(error_probed, const struct sock *sk)
{
	return kt_error_reported(false, sk);
}

/*
 * Also the destructor of IPv6 sockets. If two CPUs make a child for one request, the second
 * child is closed without tcp_set_state() (inet_ehash_nolisten) and destroyed at once.
 */
SEC("kprobe/tcp_v4_destroy_sock")
int BPF_KPROBE(sock_destroyed, struct sock *sk)
{
	struct kt_sock *s = kt_sock_get(sk);

	if (s && kt_last_state(s) == TCP_SYN_RECV &&
	    BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE)
		kt_state_probed(sk, TCP_SYN_RECV, TCP_CLOSE);
	return kt_sock_destroyed(false, sk);
}

#endif
