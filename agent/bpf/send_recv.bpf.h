/* SPDX-License-Identifier: GPL-2.0-only */
/* The programs that run after each send and receive. net/socket.c reports the socket and
 * the result of every such call, whatever its kind (6e6eda44b939, v6.3). */
#ifndef KTRACE_SEND_RECV_BPF_H
#define KTRACE_SEND_RECV_BPF_H

static __always_inline void kt_tcp_data(struct sock *sk, int bytes, bool sent)
{
	struct kt_sock *s = kt_sock_live(sk, sk->__sk_common.skc_cookie.counter);
	struct kt_owner owner;
	struct kt_tuple t;

	if (bytes <= 0)
		return;
	if (s)
		kt_own_by_use(s);
	kt_read_tuple(true, sk, &t);
	if (!kt_port_match(&t))
		return;
	if (!kt_current_wanted())
		return;
	if (s && s->owner.tgid == bpf_get_current_pid_tgid() >> 32) {
		kt_flow_data(&t, IPPROTO_TCP, s, &s->owner, bpf_ktime_get_boot_ns(), bytes, sent);
		return;
	}
	kt_read_current(&owner, KT_OWNER_PROCESS);
	kt_flow_data(&t, IPPROTO_TCP, s, &owner, bpf_ktime_get_boot_ns(), bytes, sent);
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(sock_send, struct sock *sk, int ret, int flags)
{
	if (!sk || !kt_is_inet(sk->__sk_common.skc_family))
		return 0;
	if (sk->sk_protocol == IPPROTO_TCP)
		kt_tcp_data(sk, ret, true);
	else if (sk->sk_protocol == IPPROTO_UDP && kt_wants(KT_UDP_SEND))
		kt_udp_send(sk, ret);
	return 0;
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(sock_recv, struct sock *sk, int ret, int flags)
{
	if (!sk || !kt_is_inet(sk->__sk_common.skc_family))
		return 0;
	if (sk->sk_protocol == IPPROTO_TCP && !(flags & MSG_PEEK))
		kt_tcp_data(sk, ret, false);
	else if (sk->sk_protocol == IPPROTO_UDP && kt_wants(KT_UDP_RECV))
		kt_udp_recv(sk, ret, flags);
	return 0;
}

#endif
