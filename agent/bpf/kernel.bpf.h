/* SPDX-License-Identifier: GPL-2.0-only */
/* Constants of the kernel, with the names and values of its own headers. */
#ifndef KTRACE_KERNEL_BPF_H
#define KTRACE_KERNEL_BPF_H

#ifndef KT_BCC /* the headers of the kernel have them */
#ifndef NULL
#define NULL ((void *)0)
#endif

#define PF_KTHREAD 0x00200000
#define SECCOMP_MODE_FILTER 2

#define AF_UNSPEC 0
#define AF_INET 2
#define AF_INET6 10
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_SYN_RECV 3
#define TCP_CLOSE 7
#define TCP_LISTEN 10
#define TCP_NEW_SYN_RECV 12

#define O_NONBLOCK 00004000

#define MSG_PEEK 2
#define MSG_DONTWAIT 0x40
#define MSG_ERRQUEUE 0x2000
#define MSG_BATCH 0x40000 /* set by sendmmsg itself */
#define MSG_CMSG_COMPAT 0x80000000

#define EINTR 4
#define E2BIG 7
#define EAGAIN 11
#define EEXIST 17
#define EISCONN 106
#define EALREADY 114
#define EINPROGRESS 115
#define ERESTARTSYS 512
#define ERESTART_RESTARTBLOCK 516

#endif

#define KT_THREAD_SIZE (16 << 10) /* THREAD_SIZE of x86-64 and arm64, without KASAN */

/* Whether a signal interrupted the call. ERESTART* codes never reach user space, but
 * tracing programs do read them as return values. */
static __always_inline bool kt_is_restart(long error)
{
	return error == EINTR || (error >= ERESTARTSYS && error <= ERESTART_RESTARTBLOCK);
}

#endif
