/* SPDX-License-Identifier: GPL-2.0-only */
/* What the system calls name and return: connect's errno, the peers of
 * unconnected UDP sockets, who accepted. */
#ifndef KTRACE_CALLS_BPF_H
#define KTRACE_CALLS_BPF_H

#define KT_MMSGHDR_SIZE 64
#define KT_MSG_NAMELEN 8 /* offset of msg_namelen in struct msghdr */

static const struct kt_call kt_zero_call = {};

static __always_inline struct kt_call *kt_call_get(void)
{
	__u64 thread = bpf_get_current_pid_tgid();

	return bpf_map_lookup_elem(&calls, &thread);
}

static __always_inline void kt_call_end(void)
{
	__u64 thread = bpf_get_current_pid_tgid();

	bpf_map_delete_elem(&calls, &thread);
}

static __noinline void kt_emit_left(const struct kt_datagram *d);

/* The thread's last call returned unseen: it may have left a datagram. Not inlined,
 * since it is rare and every call begins here. */
static __noinline void kt_call_left(void)
{
	struct kt_call *call = kt_call_get();

	if (!call)
		return;
	if (call->held)
		kt_emit_left(&call->datagram);
	__builtin_memset(call, 0, sizeof(*call));
}

static __always_inline struct kt_call *kt_call_begin(__u8 kind, struct sock *sk, __u64 name,
						     __u32 flags)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct kt_call *call;

	if (bpf_map_update_elem(&calls, &thread, &kt_zero_call, BPF_NOEXIST) == -EEXIST)
		kt_call_left();
	call = bpf_map_lookup_elem(&calls, &thread);
	if (!call) {
		struct kt_overflow *o = kt_overflow();

		kt_calls_full = 1;
		if (o)
			kt_add(o->calls, 1);
		return NULL;
	}
	call->sk = (__u64)sk;
	call->kind = kind;
	call->name = name;
	call->flags = flags;
	return call;
}

SEC("tracepoint/syscalls/sys_enter_connect")
int enter_connect(struct kt_sys_enter *ctx)
{
	socket_state state;
	struct sock *sk = kt_inet_sk(ctx->args[0], IPPROTO_TCP, &state);
	__u64 now = bpf_ktime_get_boot_ns();
	struct kt_call *call;

	if (!sk)
		return 0;
	call = kt_call_begin(KT_CALL_CONNECT, sk, ctx->args[1], 0);
	if (!call)
		return 0;
	call->ts = now;
	call->namelen = ctx->args[2];
	call->repeat = state != SS_UNCONNECTED;
	return 0;
}

/* A connect() that ended without the state machine: no route, no port, denied.
 * The address is the call's; a failed attempt clears the socket's. Only one that
 * `began`, that is went into SYN_SENT, had a port. */
static __always_inline void kt_connect_failed(struct sock *sk, bool began, __u64 name,
					      __u64 namelen, __u64 started, __u8 result, int error)
{
	struct kt_owner owner;
	struct kt_tuple t;

	kt_read_common(false, &sk->__sk_common, &t);
	if (began)
		kt_read_last_port(sk, &t);
	kt_read_user_peer(name, namelen, &t);
	kt_read_current(&owner, KT_OWNER_PROCESS);
	kt_emit_connect(&t, &owner, BPF_CORE_READ(sk, __sk_common.skc_cookie.counter), started,
			bpf_ktime_get_boot_ns(), result, error);
}

/* What the call says of an attempt that the state machine has not ended. But for
 * those that go on, its end went by unseen: the process learns of it now. */
static __always_inline void kt_connect_returned(const struct kt_call *call, struct kt_sock *s,
						long ret)
{
	struct sock *sk = (struct sock *)call->sk;
	struct kt_tuple t;

	s->connect_ret = ret;
	if (ret == -EINPROGRESS || ret == -EALREADY || ret == -EISCONN || kt_is_restart(-ret))
		return;
	/* TCP_FASTOPEN_CONNECT: yes, but the SYN goes out with the first data. How long
	 * those take is the process's time, so the outcome has no duration. */
	if (!ret && BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_SYN_SENT) {
		s->connect_ts = 0;
		return;
	}
	kt_read_tuple(false, sk, &t);
	if (ret) /* a failed attempt clears the socket's address */
		kt_read_user_peer(call->name, call->namelen, &t);
	s->connect = KT_CONNECT_DONE;
	kt_emit_connect(&t, &s->owner, s->cookie, s->connect_ts, bpf_ktime_get_boot_ns(),
			ret ? KT_RESULT_FAILED : KT_RESULT_ESTABLISHED, -ret);
}

/* An exit without an enter: a seccomp filter answered in connect()'s place
 * (it runs before the enter tracepoint), or the call began before us. */
static __always_inline void kt_connect_unpaired(long ret)
{
	struct task_struct *task = bpf_get_current_task_btf();
	socket_state state;
	struct pt_regs *regs;
	struct kt_counters *c;
	struct kt_tuple t;
	struct kt_sock *s;
	struct sock *sk;

	if (ret >= 0 || !kt_primed || task->seccomp.mode != 2)
		return;
	regs = (struct pt_regs *)bpf_task_pt_regs(task);
	sk = kt_inet_sk(BPF_CORE_READ(regs, di), IPPROTO_TCP, &state);
	if (!sk)
		return;
	s = kt_sock_get(sk);
	if (s && s->connect != KT_CONNECT_NONE)
		return;
	if (kt_calls_full) {
		kt_read_common(false, &sk->__sk_common, &t);
		kt_read_user_peer(BPF_CORE_READ(regs, si), sizeof(struct kt_sockaddr), &t);
		if (kt_wants(KT_CONNECT) && (c = kt_admit(KT_CONNECT, &t, kt_current_wanted(), 0)))
			kt_add(c->lost_map, 1);
		return;
	}
	kt_connect_failed(sk, false, BPF_CORE_READ(regs, si), sizeof(struct kt_sockaddr), 0,
			  KT_RESULT_DENIED, -ret);
}

SEC("tracepoint/syscalls/sys_exit_connect")
int exit_connect(struct kt_sys_exit *ctx)
{
	struct kt_call *call = kt_call_get();
	struct kt_sock *s;
	struct sock *sk;
	long ret = ctx->ret;

	if (!call || call->kind != KT_CALL_CONNECT) {
		kt_connect_unpaired(ret);
		return 0;
	}
	sk = (struct sock *)call->sk;
	if ((call->syn_sent || call->repeat) && !call->deferred) {
		s = kt_sock_get(sk);
		if (s && s->connect == KT_CONNECT_PENDING)
			kt_connect_returned(call, s, ret);
	} else if (ret < 0 && ret != -EINPROGRESS) {
		kt_connect_failed(sk, call->syn_sent, call->name, call->namelen, call->ts,
				  KT_RESULT_FAILED, -ret);
		s = kt_sock_get(sk);
		if (s)
			s->connect = KT_CONNECT_DONE;
	}
	kt_call_end();
	return 0;
}

/* The entry of a child that a process takes: its birth may have passed unseen. */
static __always_inline struct kt_sock *kt_accepted_entry(struct sock *sk, const struct kt_tuple *t)
{
	struct kt_sock *s = kt_sock_get(sk);

	if (!s)
		return kt_socks_full ? NULL : kt_sock_add(sk);
	if (kt_is_stale(s, BPF_CORE_READ(sk, __sk_common.skc_cookie.counter))) {
		kt_check_end(s, t);
		*s = kt_zero_sock;
	}
	return s;
}

static __always_inline int kt_accepted(long fd)
{
	socket_state state;
	struct sock *sk = fd < 0 ? NULL : kt_inet_sk(fd, IPPROTO_TCP, &state);
	struct kt_flow *flow;
	struct kt_owner owner;
	struct kt_sock *s;
	struct kt_tuple t;

	if (!sk)
		return 0;
	kt_read_current(&owner, KT_OWNER_ACCEPT);
	kt_read_tuple(false, sk, &t);
	s = kt_accepted_entry(sk, &t);
	if (s) {
		s->owner = owner;
		s->role = KT_ROLE_SERVER;
	}
	if (!kt_wanted(&owner) || !kt_port_match(&t))
		return 0;
	flow = kt_flow_of(&t, IPPROTO_TCP, &owner, bpf_ktime_get_boot_ns());
	if (flow) {
		flow->role = KT_ROLE_SERVER;
		kt_add(flow->opened, 1);
	}
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_accept")
int exit_accept(struct kt_sys_exit *ctx)
{
	return kt_accepted(ctx->ret);
}

SEC("tracepoint/syscalls/sys_exit_accept4")
int exit_accept4(struct kt_sys_exit *ctx)
{
	return kt_accepted(ctx->ret);
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

#endif
