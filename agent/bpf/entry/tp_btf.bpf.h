/* SPDX-License-Identifier: GPL-2.0-only */
/* Programs on raw tracepoints. Their arguments have BTF types. */
#ifndef KTRACE_TP_BTF_BPF_H
#define KTRACE_TP_BTF_BPF_H

/*
 * inet_sock_set_state is called for every change except those of request and timewait
 * sockets, in process context or in softirq (inet_sk_state_store, tcp_set_state).
 * Softirq does interrupt these programs in process context: about one change in a hundred
 * is skipped by one copy on a busy host, and handled by the other one.
 */
/* Each copy counts what it excludes, whatever the other one did: an excluded socket
 * has no entry that shows whether the first copy ran, and a mark would cost too much. */
static __always_inline bool kt_filtered_state(int copy, struct sock *sk, int old, int new)
{
	struct kt_state_copies *copies;

	if (!kt_state_excluded(true, sk, old, new))
		return false;
	if (!copy)
		kt_filter_state(sk, old, new);
	copies = kt_state_copies();
	if (copies)
		kt_add(copies->excluded[copy], 1);
	return true;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state, struct sock *sk, int old, int new)
{
	if (kt_protocol(true, sk) == IPPROTO_TCP && !kt_filtered_state(0, sk, old, new))
		kt_state_change(true, sk, old, new);
	return 0;
}

/* The changes of one socket are serialized by its lock, so last_change shows whether the
 * first copy ran. It is unknown for a socket without an entry once `socks` was full. */
SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state_nested, struct sock *sk, int old, int new)
{
	struct kt_state_copies *copies;
	struct kt_sock *s;

	if (kt_protocol(true, sk) != IPPROTO_TCP || kt_filtered_state(1, sk, old, new))
		return 0;
	s = kt_sock_get(sk);
	if (s ? s->last_change == kt_change(old, new) : kt_shared.socks_full)
		return 0;
	kt_state_change(true, sk, old, new);
	copies = kt_state_copies();
	if (copies)
		kt_add(copies->rescued, 1);
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroy, struct sock *sk)
{
	return kt_sock_destroyed(true, sk);
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(tcp_destroy_nested, struct sock *sk)
{
	return kt_sock_destroyed(true, sk);
}

SEC("tp_btf/inet_sk_error_report")
int BPF_PROG(connect_icmp, const struct sock *sk)
{
	return kt_error_reported(true, sk);
}

/* net/socket.c reports the socket and the result of every send and receive, whatever its
 * kind (6e6eda44b939, v6.3). The names of the peers are in the system calls. */
static __always_inline int kt_sock_sent(int copy, struct sock *sk, int ret)
{
	enum kt_data kind = kt_sent_kind(true, sk, ret);
	struct kt_thread *thread = kind < KT_DATA_KINDS ? kt_thread() : NULL;

	if (kind == KT_DATA_KINDS || !kt_turn(thread, KT_PAIR_SEND, copy))
		return 0;
	if (kind == KT_DATA_TCP_SEND)
		kt_tcp_data(true, sk, ret, true);
	else
		kt_udp_sent_by_call(sk, ret);
	kt_data_handled(thread, KT_PAIR_SEND, copy, kind);
	return 0;
}

static __always_inline int kt_sock_received(int copy, struct sock *sk, int ret, __u32 flags)
{
	enum kt_data kind = kt_received_kind(true, sk, ret, flags);
	struct kt_thread *thread = kind < KT_DATA_KINDS ? kt_thread() : NULL;

	if (kind == KT_DATA_KINDS || !kt_turn(thread, KT_PAIR_RECV, copy))
		return 0;
	if (kind == KT_DATA_TCP_RECV)
		kt_tcp_data(true, sk, ret, false);
	else
		kt_udp_received_by_call(sk, ret, flags);
	kt_data_handled(thread, KT_PAIR_RECV, copy, kind);
	return 0;
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(sock_send_count, struct sock *sk, int ret, int flags)
{
	return kt_count_data(kt_sent_kind(true, sk, ret));
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(sock_send, struct sock *sk, int ret, int flags)
{
	return kt_sock_sent(0, sk, ret);
}

SEC("tp_btf/sock_send_length")
int BPF_PROG(sock_send_nested, struct sock *sk, int ret, int flags)
{
	return kt_sock_sent(1, sk, ret);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(sock_recv_count, struct sock *sk, int ret, int flags)
{
	return kt_count_data(kt_received_kind(true, sk, ret, flags));
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(sock_recv, struct sock *sk, int ret, int flags)
{
	return kt_sock_received(0, sk, ret, flags);
}

SEC("tp_btf/sock_recv_length")
int BPF_PROG(sock_recv_nested, struct sock *sk, int ret, int flags)
{
	return kt_sock_received(1, sk, ret, flags);
}

/* With the argument `err` the tracepoint also reports failed attempts, which send no
 * segment. The prototype is in BTF, so user space selects the matching program. */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit_err, const struct sock *sk, struct sk_buff *skb, int err)
{
	return err ? 0 : kt_retransmit(sk, skb);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(tcp_retransmit, const struct sock *sk, struct sk_buff *skb)
{
	return kt_retransmit(sk, skb);
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(tcp_retransmit_synack, const struct sock *sk, const struct request_sock *req)
{
	return kt_retransmit_synack(sk, req);
}

#endif
