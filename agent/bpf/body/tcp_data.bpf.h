/* SPDX-License-Identifier: GPL-2.0-only */
/* Bytes that processes send and receive on TCP sockets: counted in flows, without rows. */
#ifndef KTRACE_TCP_DATA_BPF_H
#define KTRACE_TCP_DATA_BPF_H

static __always_inline void kt_tcp_data(bool typed, struct sock *sk, int bytes, bool sent)
{
	struct kt_sock *s = kt_sock_live(sk, KT_READ(typed, sk, __sk_common.skc_cookie.counter));
	struct kt_owner owner;
	struct kt_tuple t;

	if (s)
		kt_own_by_use(s);
	if (!kt_current_wanted())
		return;
	kt_read_tuple(typed, sk, &t);
	if (s && s->owner.tgid == bpf_get_current_pid_tgid() >> 32) {
		kt_flow_data(&t, IPPROTO_TCP, s, &s->owner, bpf_ktime_get_boot_ns(), bytes, sent);
		return;
	}
	kt_read_current(&owner, KT_OWNER_PROCESS);
	kt_flow_data(&t, IPPROTO_TCP, s, &owner, bpf_ktime_get_boot_ns(), bytes, sent);
}

#endif
