/* SPDX-License-Identifier: GPL-2.0-only */
/* A call that sent or received data, whatever its protocol and the program that saw it. */
#ifndef KTRACE_DATA_BPF_H
#define KTRACE_DATA_BPF_H

/* Which kind of data the call sent; KT_DATA_KINDS if no program has to handle it. */
static __always_inline enum kt_data kt_sent_kind(bool typed, const struct sock *sk, int ret)
{
	__u16 protocol = sk ? kt_protocol(typed, sk) : 0;

	if (protocol == IPPROTO_UDP && kt_wants(KT_UDP_SEND))
		return KT_DATA_UDP_SEND;
	if (protocol == IPPROTO_TCP && ret > 0 && !kt_excluded(typed, sk))
		return KT_DATA_TCP_SEND;
	return KT_DATA_KINDS;
}

/* As kt_sent_kind(). An empty queue or a signal yields no datagram. Neither MSG_PEEK nor the
 * error queue takes data from a TCP stream. */
static __always_inline enum kt_data kt_received_kind(bool typed, const struct sock *sk, int ret,
						     __u32 flags)
{
	__u16 protocol = sk ? kt_protocol(typed, sk) : 0;

	if (protocol == IPPROTO_UDP && kt_wants(KT_UDP_RECV) && ret != -EAGAIN &&
	    !kt_is_restart(-(long)ret))
		return KT_DATA_UDP_RECV;
	if (protocol == IPPROTO_TCP && ret > 0 && !(flags & (MSG_PEEK | MSG_ERRQUEUE)) &&
	    !kt_excluded(typed, sk))
		return KT_DATA_TCP_RECV;
	return KT_DATA_KINDS;
}

#endif
