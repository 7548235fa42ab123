/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What depends on the age of the kernel's BPF. The programs are compiled twice: for kernels
 * since v5.15, and as KT_BASIC with what v5.10 has. User space chooses the object by
 * feature (kernel/collector.py). The basic object lacks:
 *
 *   atomics that return the old value	5ca419f2864a, v5.12
 *   bpf_get_current_task_btf()		3ca1032ab7ab, v5.11
 *   bpf_sock_from_file()		4f19cab76136, v5.11
 *   task storage in tracing programs	a10787e6d58c, v5.12
 *   bpf_get_socket_cookie() there	c5dbb89fc2ac, v5.12
 *   bpf_task_pt_regs()			dd6e10fbd9fb, v5.15
 */
#ifndef KTRACE_ERA_BPF_H
#define KTRACE_ERA_BPF_H

#ifndef KT_BCC
#define KT_MAP(name) (&(name))
/* The initial value of map entries. */
#define KT_DEFINE_ZERO(type) static const struct type type##_zero = {}
#define KT_ZERO(type) (&type##_zero)
#endif

/* A function that the verifier checks once, whoever calls it. */
#ifndef KT_BCC
#define KT_GLOBAL __noinline
#endif

#ifdef KT_BASIC
#define KT_MODERN 0
#else
#define KT_MODERN 1
#endif

/* Atomic, since softirq may interrupt a program on the same CPU. */
#define kt_add(field, n) ((void)__sync_fetch_and_add(&(field), (n)))

/* Adds n and returns the value before. The basic object adds without that guarantee: two
 * CPUs may read the same value. */
#ifdef KT_BASIC
#define kt_fetch_add(field, n)        \
	({                            \
		__u64 old_ = (field); \
		kt_add(field, n);     \
		old_;                 \
	})
#else
#define kt_fetch_add(field, n) __sync_fetch_and_add(&(field), (n))
#endif

/*
 * Reads a field of a kernel object: by a plain load if the verifier knows the BTF type of
 * the pointer (`typed`, a constant), else by a helper call.
 */
#ifdef KT_BCC
#define KT_READ(typed, object, field) BPF_CORE_READ(object, field)
#else
#define KT_READ(typed, object, field) ((typed) ? (object)->field : BPF_CORE_READ(object, field))
#endif

/* The current task; typed in the modern object only. */
static __always_inline struct task_struct *kt_current(void)
{
#ifdef KT_BASIC
	return (struct task_struct *)bpf_get_current_task();
#else
	return bpf_get_current_task_btf();
#endif
}

#endif
