/* SPDX-License-Identifier: GPL-2.0-only */
/* Enter and exit of connect(): outcomes that the TCP state machine does not report. */
#ifndef KTRACE_CONNECT_CALL_BPF_H
#define KTRACE_CONNECT_CALL_BPF_H

/*
 * Whether --dns-only excludes a call by the port that it names. A socket bound to port 53
 * that connects to another one is not a DNS client; its rows begin with its SYN.
 */
static __always_inline bool kt_connect_excluded(__u64 name)
{
	struct kt_sockaddr sa = {};

	return kt_config.dns_only &&
	       !bpf_probe_read_user(&sa, sizeof(sa.family) + sizeof(sa.port), (void *)name) &&
	       sa.port != bpf_htons(53);
}

static __always_inline int kt_connect_enter(int fd, __u64 name, __u64 namelen)
{
	socket_state state;
	struct kt_call *call;
	struct sock *sk;

	if (kt_connect_excluded(name))
		return 0;
	sk = kt_inet_sk(fd, IPPROTO_TCP, &state);
	if (!sk)
		return 0;
	call = kt_call_begin(KT_CALL_CONNECT, sk, name, 0);
	if (!call)
		return 0;
	call->ts = bpf_ktime_get_boot_ns();
	call->namelen = namelen;
	call->repeat = state != SS_UNCONNECTED;
	return 0;
}

/* Emits a connect() that failed without an outcome from the state machine: no route, no
 * port, denied. The address is that of the call, since a failed attempt clears the
 * socket's. Only an attempt that `began`, that is reached SYN_SENT, had a port. */
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

/* Handles the return value of a call whose attempt is still pending. Unless the attempt
 * continues, the change that ended it was missed, and the value is its outcome. */
static __always_inline void kt_connect_returned(const struct kt_call *call, struct kt_sock *s,
						long ret)
{
	struct sock *sk = (struct sock *)call->sk;
	struct kt_tuple t;

	s->connect_ret = ret;
	if (ret == -EINPROGRESS || ret == -EALREADY || ret == -EISCONN || kt_is_restart(-ret))
		return;
	/* TCP_FASTOPEN_CONNECT: success, but the SYN is sent with the first data. The
	 * process decides when, so the outcome has no duration. */
	if (!ret && BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_SYN_SENT) {
		s->connect_ts = 0;
		return;
	}
	kt_read_tuple(false, sk, &t);
	if (ret) /* a failed attempt clears the address of the socket */
		kt_read_user_peer(call->name, call->namelen, &t);
	s->connect = KT_CONNECT_DONE;
	kt_emit_connect(&t, &s->owner, s->cookie, s->connect_ts, bpf_ktime_get_boot_ns(),
			ret ? KT_RESULT_FAILED : KT_RESULT_ESTABLISHED, -ret);
}

/* The registers of the system call that the task executes: at the top of its stack. */
static __always_inline struct pt_regs *kt_call_regs(struct task_struct *task)
{
#ifdef KT_BASIC
	return (struct pt_regs *)(BPF_CORE_READ(task, stack) + KT_THREAD_SIZE -
				  bpf_core_type_size(struct pt_regs));
#else
	return (struct pt_regs *)bpf_task_pt_regs(task);
#endif
}

/* Handles an exit without an enter: a seccomp filter rejected the call (it runs before
 * the enter tracepoint), or the call began before the capture. */
static __always_inline void kt_connect_unpaired(long ret)
{
	struct task_struct *task = kt_current();
	socket_state state;
	struct pt_regs *regs;
	struct kt_counters *c;
	struct kt_tuple t;
	struct kt_sock *s;
	struct sock *sk;

	if (ret >= 0 || ret == -EINPROGRESS || !kt_shared.primed ||
	    KT_READ(KT_MODERN, task, seccomp.mode) != SECCOMP_MODE_FILTER)
		return;
	regs = kt_call_regs(task);
	if (kt_connect_excluded(PT_REGS_PARM2_CORE_SYSCALL(regs)))
		return;
	sk = kt_inet_sk(PT_REGS_PARM1_CORE_SYSCALL(regs), IPPROTO_TCP, &state);
	if (!sk)
		return;
	s = kt_sock_get(sk);
	if (s && s->connect != KT_CONNECT_NONE)
		return;
	if (kt_shared.calls_full) {
		kt_read_common(false, &sk->__sk_common, &t);
		kt_read_user_peer(PT_REGS_PARM2_CORE_SYSCALL(regs), sizeof(struct kt_sockaddr), &t);
		if (kt_wants(KT_CONNECT) && (c = kt_admit(KT_CONNECT, &t, kt_current_wanted(), 0)))
			kt_add(c->lost_map, 1);
		return;
	}
	kt_connect_failed(sk, false, PT_REGS_PARM2_CORE_SYSCALL(regs), sizeof(struct kt_sockaddr),
			  0, KT_RESULT_DENIED, -ret);
}

static __always_inline int kt_connect_exit(long ret)
{
	struct kt_call *call = kt_call_get();
	struct kt_sock *s;
	struct sock *sk;

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

#endif
