/* SPDX-License-Identifier: GPL-2.0-only */
/* Programs at the enter and the exit of system calls. */
#ifndef KTRACE_SYSCALLS_BPF_H
#define KTRACE_SYSCALLS_BPF_H

/* Contexts of the tracepoints syscalls:sys_enter_* and sys_exit_*: a common header of
 * 8 bytes, the number of the system call, and its arguments or its return value. The
 * layout is the same on every kernel that has BPF ring buffers. */
struct kt_sys_enter {
	__u64 common;
	long id;
	unsigned long args[6];
};

struct kt_sys_exit {
	__u64 common;
	long id;
	long ret;
};

SEC("tracepoint/syscalls/sys_enter_connect")
int enter_connect(struct kt_sys_enter *ctx)
{
	return kt_connect_enter(ctx->args[0], ctx->args[1], ctx->args[2]);
}

SEC("tracepoint/syscalls/sys_exit_connect")
int exit_connect(struct kt_sys_exit *ctx)
{
	return kt_connect_exit(ctx->ret);
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

/* kprobes find the peer in the msghdr of the kernel function. */
#ifndef KT_BCC
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
#endif /* KT_BCC */

#endif
