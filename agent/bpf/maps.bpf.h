/* SPDX-License-Identifier: GPL-2.0-only */
/* The knobs that user space sets before load, the maps and what they hold. */
#ifndef KTRACE_MAPS_BPF_H
#define KTRACE_MAPS_BPF_H

/* A section of its own: user space writes the whole struct into its map. */
const volatile struct kt_config kt_config SEC(".rodata.config") = {
	.max_events = KT_UNKNOWN,
	.types = (1U << KT_HOOKS) - 1,
	.sample = 1,
	.security = 1,
};

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

/* Process facts as they were when it last acted on the socket. */
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
	__u8 wanted; /* it is in a pod that was asked for */
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
	__u64 state_ts;	   /* when the state was entered; 0 = before us */
	__u64 connect_ts;  /* when connect() was called; 0 = before us, or its
			    * SYN went out only later */
	__s32 connect_ret; /* what that call returned */
	__u8 connect;	   /* enum kt_connect */
	__u8 role;
	__u8 last_change; /* the last change that was dealt with, see kt_change() */
	__u8 dest_family;
	__u32 connect_icmp; /* errno of an ICMP answer to its SYN */
	__u32 dest_net;
	__u8 dest_addr[16]; /* whom it connects to, as in struct kt_tuple: the */
	__u16 dest_port;    /* socket may be gone when it is listed as pending */
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

/* A datagram that a call got; its row waits for the address in user memory. */
struct kt_datagram {
	struct kt_owner owner;
	struct kt_tuple tuple; /* as the socket has it */
	__u64 ts;
	__u64 cookie;
	__u64 name; /* where the kernel will put the address */
	__u64 namelen;
	__u32 bytes;
	__u32 flags;
};

/* A system call that a thread is in. */
struct kt_call {
	__u64 sk;
	__u64 ts;
	__u64 name;    /* user's sockaddr, msghdr or mmsghdr[] */
	__u64 namelen; /* recvfrom: user's int * */
	__u32 index;   /* message within an mmsghdr[] */
	__u32 flags;
	__u8 kind;
	__u8 syn_sent; /* connect: this call sent the SYN */
	__u8 deferred; /* connect: closed inside, its return decides */
	__u8 repeat;   /* connect: asks about an earlier one */
	__u8 pending;  /* send: family of the corked datagram it adds to */
	__u8 held;     /* recv: there is a datagram to emit */
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
	__u64 shared; /* SO_REUSEPORT: several sockets, no one owner */
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
} ring SEC(".maps");

/* Preallocated where entries come and go with every connection or call: taking
 * one from the kernel's allocator each time costs up to a microsecond. User space
 * preallocates the others too where tracepoints may not allocate (before v6.1). */

/* sk -> owner, state time, connect in progress. The pointer is the key since
 * a child's cookie is set only after its first state change. */
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

/* pid_tgid -> the call that the thread is in. */
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

/* The pods whose events are kept, where not all are. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct kt_pod_uid);
	__type(value, __u8);
} pods SEC(".maps");

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

/* Events that passed the filter, per hook: the clock of the sampling. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KT_HOOKS);
	__type(key, __u32);
	__type(value, __u64);
} ticks SEC(".maps");

/* State changes that tcp_state missed and tcp_state_nested told. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} rescued SEC(".maps");

/* Records kept so far, over all hooks and CPUs. */
__u64 kt_kept = 0;
/* Set for good once a call found no place in `calls`. */
__u8 kt_calls_full = 0;
/* Set for good once a socket found no place in `socks`. */
__u8 kt_socks_full = 0;
/* Set once the inventory knows the connects that began before us. */
__u8 kt_primed = 0;

/* Softirq may interrupt a program on the same CPU: count atomically. */
#define kt_add(field, n) __sync_fetch_and_add(&(field), (n))

static __always_inline struct kt_overflow *kt_overflow(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&overflow, &zero);
}

#endif
