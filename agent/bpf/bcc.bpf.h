/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The third way to compile the programs (era.bpf.h): on the node by bcc, with the headers
 * of the running kernel, for kernels without BTF. It compiles the programs of kprobes and
 * of system calls, with what the basic object has; the offsets of fields are those of the
 * headers.
 *
 * bcc is used as a compiler only. All programs and the functions that they call are in one
 * section, whose calls need no relocation; user space cuts it into programs
 * (kernel/bcc/section.py). User space creates the maps and passes their descriptors as
 * KT_FD_*.
 */
#ifndef KTRACE_BCC_BPF_H
#define KTRACE_BCC_BPF_H

#include <linux/cgroup.h>
#include <linux/cred.h>
#include <linux/errno.h>
#include <linux/errqueue.h>
#include <linux/fcntl.h>
#include <linux/fdtable.h>
#include <linux/fs.h>
#include <linux/kernfs.h>
#include <linux/ns_common.h>
#include <linux/nsproxy.h>
#include <linux/pid_namespace.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/socket.h>
#include <linux/udp.h>
#include <linux/user_namespace.h>
#include <linux/version.h>
#include <net/inet_sock.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#include <net/tcp.h>

/* fs/mount.h is not one of the headers for modules. The counter before `ns` is gone since
 * v5.11 (1a7b8969e664). */
struct mnt_namespace {
#if LINUX_VERSION_CODE < KERNEL_VERSION(5, 11, 0)
	atomic_t count;
#endif
	struct ns_common ns;
};

#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 15, 0) /* 741c10b096bc */
#define __parent parent
#endif

#define tcp_set_state kt_tcp_set_state /* the program, not the function */

/* Controllers that the kernel was built without. */
#ifndef CONFIG_MEMCG
#define memory_cgrp_id 0
#endif
#ifndef CONFIG_CGROUP_PIDS
#define pids_cgrp_id memory_cgrp_id
#endif

/* tcp_recvmsg(), udp_recvmsg() and udpv6_recvmsg() lost `noblock` together (v5.19). */
#define KT_HAS_NOBLOCK                                                                  \
	_Generic(&tcp_recvmsg,                                                          \
		int (*)(struct sock *, struct msghdr *, size_t, int, int, int *): true, \
		default: false)

/* `used`: the compiler must not change the arguments of a program. */
#define KT_SECTION __attribute__((section(".bpf.fn.kt_programs")))
#define SEC(name) static __attribute__((__noinline__, used)) KT_SECTION
#undef __noinline
#define __noinline __attribute__((__noinline__)) KT_SECTION
#define KT_GLOBAL static __noinline

/* A map by its descriptor, and the value of an array by the descriptor of its map: the
 * pseudo instructions BPF_PSEUDO_MAP_FD and BPF_PSEUDO_MAP_VALUE. */
#define KT_MAP(name) ((void *)bpf_pseudo_fd(1, KT_FD_##name))
#define KT_VALUE(type, name) ((type *)bpf_pseudo_fd(2, KT_FD_##name))
#define KT_DEFINE_ZERO(type) \
	_Static_assert(sizeof(struct type) <= KT_ZEROS_LEN, "kt_zeros is too short")
#define KT_ZERO(type) KT_VALUE(struct type, zeros)

/* What libbpf's bpf_core_read.h relocates, as constants of the headers. */
#define __builtin_preserve_access_index(address) (address)
#define bpf_core_field_offset(type, field) offsetof(type, field)
#define bpf_core_type_size(type) sizeof(type)
#define bpf_core_enum_value_exists(type, value) true
#define bpf_core_enum_value(type, value) (value)
#define bpf_core_read(to, size, from) bpf_probe_read_kernel(to, size, from)
#define bpf_core_read_str(to, size, from) bpf_probe_read_kernel_str(to, size, from)

#define KT_READ_1(from, a)                                                                        \
	({                                                                                        \
		typeof((from)->a) field_;                                                         \
		bpf_probe_read_kernel((void *)&field_, sizeof(field_), (const void *)&(from)->a); \
		field_;                                                                           \
	})
#define KT_READ_2(from, a, b)                                  \
	({                                                     \
		typeof((from)->a) first_ = KT_READ_1(from, a); \
		KT_READ_1(first_, b);                          \
	})
#define KT_READ_3(from, a, b, c)                                      \
	({                                                            \
		typeof((from)->a->b) second_ = KT_READ_2(from, a, b); \
		KT_READ_1(second_, c);                                \
	})
#define KT_READ_4(from, a, b, c, d)                                        \
	({                                                                 \
		typeof((from)->a->b->c) third_ = KT_READ_3(from, a, b, c); \
		KT_READ_1(third_, d);                                      \
	})

#define KT_NTH(_1, _2, _3, _4, _5, n, ...) n
#define KT_JOIN_(a, b) a##b
#define KT_JOIN(a, b) KT_JOIN_(a, b)
#define KT_COUNT(...) KT_NTH(__VA_ARGS__, 5, 4, 3, 2, 1)
#define BPF_CORE_READ(from, ...) KT_JOIN(KT_READ_, KT_COUNT(__VA_ARGS__))(from, __VA_ARGS__)

/* The programs of kprobes with libbpf's macros. */
#define KT_ARGS_1 (void *)PT_REGS_PARM1(ctx)
#define KT_ARGS_2 KT_ARGS_1, (void *)PT_REGS_PARM2(ctx)
#define KT_ARGS_3 KT_ARGS_2, (void *)PT_REGS_PARM3(ctx)
#define KT_ARGS_4 KT_ARGS_3, (void *)PT_REGS_PARM4(ctx)
#define KT_ARGS_5 KT_ARGS_4, (void *)PT_REGS_PARM5(ctx)
#define KT_PROBE(name, values, ...)                                                                \
	name(struct pt_regs *ctx);                                                                 \
	static __always_inline int name##_body(struct pt_regs *ctx, __VA_ARGS__);                  \
	static int name(struct pt_regs *ctx)                                                       \
	{                                                                                          \
		_Pragma("GCC diagnostic push")                                                     \
			_Pragma("GCC diagnostic ignored \"-Wint-conversion\"") return name##_body( \
				ctx, values);                                                      \
		_Pragma("GCC diagnostic pop")                                                      \
	}                                                                                          \
	static __always_inline int name##_body(struct pt_regs *ctx, __VA_ARGS__)
#define BPF_KPROBE(name, ...) KT_PROBE(name, KT_JOIN(KT_ARGS_, KT_COUNT(__VA_ARGS__)), __VA_ARGS__)
#define BPF_KRETPROBE(name, result) KT_PROBE(name, (void *)PT_REGS_RC(ctx), result)
#define PT_REGS_PARM1_CORE_SYSCALL(regs) BPF_CORE_READ(regs, di)
#define PT_REGS_PARM2_CORE_SYSCALL(regs) BPF_CORE_READ(regs, si)

/* Marks a program for user space: the call after the instruction `r0 = KT_MARK + number`
 * is that of the program. */
#define KT_MARK 0x4b540000
#define KT_PROGRAM(number, name)                                     \
	do {                                                         \
		asm volatile("r0 = %0" : : "i"(KT_MARK + (number))); \
		name((void *)ctx);                                   \
	} while (0)

#endif
