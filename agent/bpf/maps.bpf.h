/* SPDX-License-Identifier: GPL-2.0-only */
/* The state of the programs: settings, maps with their entries, global variables. */
#ifndef KTRACE_MAPS_BPF_H
#define KTRACE_MAPS_BPF_H

#define KT_ZEROS_LEN 512 /* at least the largest value of a map that programs add */

struct kt_tuple {
	__u8 local[16];
	__u8 remote[16];
	__u32 ns_net;
	__u16 lport;
	__u16 rport;
	__u8 family; /* 4 or 6 */
	__u8 peer_source;
	__u8 pad[6];
};

/* Facts about a process, read when it last acted on the socket. */
struct kt_owner {
	__u64 cgroup_id;
	__u64 caps_eff;
	__u32 pid;
	__u32 tgid;
	__u32 ppid;
	__u32 uid;
	__u32 gid;
	__u32 ns_mnt;
	__u32 ns_pid;
	__u32 ns_user;
	__u8 seccomp_mode;
	__u8 known;
	__u8 source;
	__u8 wanted; /* with a pod filter: it is in a listed pod */
	__u8 pad[4];
	char comm[KT_COMM_LEN];
};

enum kt_connect {
	KT_CONNECT_NONE = 0,
	KT_CONNECT_PENDING = 1,
	KT_CONNECT_DONE = 2,
};

struct kt_sock {
	struct kt_owner owner;
	__u64 cookie;
	__u64 state_ts;	   /* start of the current state; 0 = unknown */
	__u64 connect_ts;  /* start of connect(); 0 = before the capture, or the
			    * SYN was sent only after the call */
	__s32 connect_ret; /* return value of that call */
	__u8 connect;	   /* enum kt_connect */
	__u8 role;
	__u8 last_change; /* last change that was handled, see kt_change() */
	__u8 dest_family;
	__u32 connect_icmp; /* errno of an ICMP error for its SYN */
	__u32 dest_net;
	__u8 dest_addr[16]; /* destination, as in struct kt_tuple: the socket */
	__u16 dest_port;    /* may be gone when the attempt is listed as pending */
	__u8 pad[6];
};

enum kt_call_kind {
	KT_CALL_CONNECT = 1,
	KT_CALL_SENDTO,
	KT_CALL_SENDMSG,
	KT_CALL_SENDMMSG,
	KT_CALL_RECVFROM,
	KT_CALL_RECVMSG,
	KT_CALL_RECVMMSG,
};

/* A received datagram. Its row is written once the sender's address is in user memory. */
struct kt_datagram {
	struct kt_owner owner;
	struct kt_tuple tuple; /* of the socket, without the sender */
	__u64 ts;
	__u64 cookie;
	__u64 name; /* user pointer to the sender's sockaddr */
	__u64 namelen;
	__u32 bytes;
	__u32 flags;
};

/* The system call that a thread is executing. */
struct kt_call {
	__u64 sk;
	__u64 ts;
	__u64 name;    /* user pointer: sockaddr, msghdr or mmsghdr[] */
	__u64 namelen; /* recvfrom: user pointer to int */
	__u32 index;   /* current message in the mmsghdr[] */
	__u32 flags;
	__u8 kind;
	__u8 syn_sent; /* connect: this call sent the SYN */
	__u8 deferred; /* connect: closed in the call, its return value decides */
	__u8 repeat;   /* connect: the attempt began in an earlier call */
	__u8 pending;  /* send: family of the corked datagram, 0 = none */
	__u8 held;     /* receive: `datagram` is not emitted yet */
	__u8 pad[2];
	struct kt_datagram datagram;
};

struct kt_listener_key {
	__u8 addr[16];
	__u32 ns_net;
	__u16 port;
	__u8 pad[2];
};

struct kt_listener {
	__u64 sk;
	__u64 shared; /* several sockets (SO_REUSEPORT), so no single owner */
};

/* Programs that exist twice (copies.bpf.h). */
enum kt_pair {
	KT_PAIR_SEND = 0,
	KT_PAIR_RECV = 1,
	KT_PAIRS = 2,
};

/* The kernel function that a thread executes, as kprobes see it. */
enum kt_function {
	KT_FUNCTION_NONE = 0,
	KT_FUNCTION_LISTEN,
	KT_FUNCTION_UDP_SEND,
	KT_FUNCTION_UDPV6_SEND,
	KT_FUNCTION_TCP_SEND,
	KT_FUNCTION_UDP_RECV,
	KT_FUNCTION_UDPV6_RECV,
	KT_FUNCTION_TCP_RECV,
};

struct kt_thread {
	__u64 sk; /* arguments of `function` */
	__u64 msg;
	__u32 flags;
	__u16 cork;    /* send: family of the datagram that was corked before, 0 = none */
	__u8 function; /* enum kt_function, until its return */
	__u8 pad;
	__u16 handled[KT_PAIRS][2];
	__u16 counted[KT_DATA_KINDS];
};

struct kt_shared {
	__u64 kept;	 /* records kept so far on all hooks and CPUs; max_events is their limit */
	__u8 calls_full; /* set permanently once `calls` was full */
	__u8 socks_full; /* set permanently once `socks` was full */
	__u8 primed;	 /* the inventory holds the attempts that began before the capture */
	__u8 pad[5];
};

#ifdef KT_BCC
#define kt_config (*KT_VALUE(const volatile struct kt_config, config))
#define kt_shared (*KT_VALUE(struct kt_shared, bss))
#define kt_counting (*KT_VALUE(volatile __u32, counting))
#else
/* In a section of its own: user space sets the whole struct as the value of its map. */
const volatile struct kt_config kt_config SEC(".rodata.config") = {
	.max_events = KT_UNKNOWN,
	.types = (1U << KT_HOOKS) - 1,
	.sample = 1,
	.security = 1,
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} ring SEC(".maps");

/* Maps whose entries change with every connection or call are preallocated: an
 * allocation takes up to a microsecond. User space preallocates the others too if
 * tracepoint programs must not allocate (before v6.1). */

/* Pointer to struct sock -> owner, time of the state, connection attempt. The cookie
 * cannot be the key: a child gets its cookie only after its first state change. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct kt_sock);
} socks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct kt_listener_key);
	__type(value, struct kt_listener);
} listeners SEC(".maps");

/* pid_tgid -> the system call that the thread is executing. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct kt_call);
} calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct kt_flow_key);
	__type(value, struct kt_flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 8192);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, struct kt_cgroup);
} cgroups SEC(".maps");

/* The pods whose events are kept if pods_only is set. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct kt_pod_uid);
	__type(value, __u8);
} pods SEC(".maps");

#ifdef KT_BASIC
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64); /* pid_tgid */
	__type(value, struct kt_thread);
} threads SEC(".maps");
#else
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kt_thread);
} threads SEC(".maps");
#endif

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kt_data_calls);
} data_calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KT_HOOKS);
	__type(key, __u32);
	__type(value, struct kt_counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kt_overflow);
} overflow SEC(".maps");

/* Events that passed the filters, per hook: sampling keeps every Nth of them. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KT_HOOKS);
	__type(key, __u32);
	__type(value, __u64);
} ticks SEC(".maps");

/* State changes, by the copies of the program. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct kt_state_copies);
} state_copies SEC(".maps");

/* Variables that all programs share. */
struct kt_shared kt_shared = {};
/* Whether calls are counted (copies.bpf.h). In a section of its own: user space sets it
 * while programs change the other variables. */
volatile __u32 kt_counting SEC(".data.counting") = 0;

#ifdef KT_BASIC
/* The initial value of map entries in programs that bcc compiled (bcc.bpf.h). */
const volatile __u8 kt_zeros[KT_ZEROS_LEN] SEC(".rodata.zeros") = {};
#endif
#endif /* KT_BCC */

static __always_inline struct kt_overflow *kt_overflow(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(KT_MAP(overflow), &zero);
}

#endif
