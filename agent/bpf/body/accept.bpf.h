/* SPDX-License-Identifier: GPL-2.0-only */
/* Connections that a process receives from accept(). */
#ifndef KTRACE_ACCEPT_BPF_H
#define KTRACE_ACCEPT_BPF_H

/* Returns the entry of an accepted child, created if its first change was missed. */
static __always_inline struct kt_sock *kt_accepted_entry(struct sock *sk, const struct kt_tuple *t)
{
	struct kt_sock *s = kt_sock_get(sk);

	if (!s)
		return kt_shared.socks_full ? NULL : kt_sock_add(sk);
	if (kt_is_stale(s, BPF_CORE_READ(sk, __sk_common.skc_cookie.counter))) {
		kt_check_end(s, t);
		*s = *KT_ZERO(kt_sock);
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
	kt_read_tuple(false, sk, &t);
	if (!kt_port_match(&t))
		return 0;
	kt_read_current(&owner, KT_OWNER_ACCEPT);
	s = kt_accepted_entry(sk, &t);
	if (s) {
		s->owner = owner;
		s->role = KT_ROLE_SERVER;
	}
	if (!kt_wanted(&owner))
		return 0;
	flow = kt_flow_of(&t, IPPROTO_TCP, &owner, bpf_ktime_get_boot_ns());
	if (flow) {
		flow->role = KT_ROLE_SERVER;
		kt_add(flow->opened, 1);
	}
	return 0;
}

#endif
