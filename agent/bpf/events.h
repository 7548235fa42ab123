/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The interface between the BPF programs and user space. Each type has a mirror in
 * the agent's Python code; test_event_layout.py compares them through BTF.
 */
#ifndef KTRACE_EVENTS_H
#define KTRACE_EVENTS_H

/*
 * As in the kernel, pid is the ID of a task and tgid the ID of its process. Addresses
 * are 16 bytes in network byte order, IPv4 as ::ffff:a.b.c.d. Ports are in host byte
 * order. Times are CLOCK_BOOTTIME in nanoseconds. No struct has implicit padding
 * (-Wpadded), and every record is zeroed before it is filled.
 */

#define KT_COMM_LEN 16
#define KT_CGROUP_LEVELS 4
#define KT_CGROUP_NAME_LEN 96
#define KT_POD_UID_LEN 36
#define KT_UNKNOWN (~0ULL)
#define KT_SOCK_INODE (1ULL << 52) /* kt_event.sock: an inode number, no cookie */

/* Row types. Types below KT_HOOKS are also the index of the hook's counters. */
enum kt_type {
	KT_TCP_STATE = 0,
	KT_UDP_SEND = 1,
	KT_UDP_RECV = 2,
	KT_CONNECT = 3,
	KT_RETRANSMIT = 4,
	KT_HOOKS = 5,
	KT_STOCK = 6, /* a socket of the inventory, never in the ring */
};

/* Why the process of a record is considered the owner of the socket. */
enum kt_owner_source {
	KT_OWNER_NONE = 0,
	KT_OWNER_PROCESS = 1,	/* called connect, listen, send or receive on it */
	KT_OWNER_ACCEPT = 2,	/* received it from accept() */
	KT_OWNER_LISTENER = 3,	/* owns the listener; not accepted yet */
	KT_OWNER_INVENTORY = 4, /* held a descriptor of it when the capture began */
};

/* Where the remote address of a record comes from. */
enum kt_peer_source {
	KT_PEER_NONE = 0,
	KT_PEER_SOCKET = 1, /* the peer of the socket */
	KT_PEER_CALL = 2,   /* the address argument of the system call */
	KT_PEER_PACKET = 3, /* the header of the packet */
	KT_PEER_CORK = 4,   /* the destination of the corked datagram */
};

enum kt_role {
	KT_ROLE_UNKNOWN = 0,
	KT_ROLE_CLIENT = 1,
	KT_ROLE_SERVER = 2,
};

enum kt_result {
	KT_RESULT_NONE = 0,
	KT_RESULT_ESTABLISHED = 1,
	KT_RESULT_FAILED = 2,	   /* error holds the final errno */
	KT_RESULT_ABANDONED = 3,   /* closed before the peer answered */
	KT_RESULT_INTERRUPTED = 4, /* a signal interrupted the call, then closed */
	KT_RESULT_PENDING = 5,	   /* no outcome when the capture ended */
	KT_RESULT_DENIED = 6,	   /* rejected by seccomp, connect() did not run */
};

/* Bits of kt_event.known. Fields whose bit is clear are unknown and shown as "-". */
#define KT_KNOWN_PROCESS 1  /* pid, tgid, ppid, uid, gid, comm, ns_{mnt,pid,user} */
#define KT_KNOWN_SECURITY 2 /* seccomp_mode, caps_eff */
#define KT_KNOWN_CGROUP 4   /* cgroup_id */

/* Bits of kt_event.flags. UDP: MSG_* flags of the call in the low 31 bits. */
#define KT_FLAG_CORKED (1U << 31) /* the datagram is not complete yet */
#define KT_FLAG_SYNACK 1U	  /* KT_RETRANSMIT: the SYN-ACK of a listener */

struct kt_event {
	__u64 ts;   /* time of the event */
	__u64 sock; /* socket cookie as in `ss -e`, or KT_SOCK_INODE and the inode; 0 = unknown */
	__u64 cgroup_id;
	__u64 caps_eff;
	__u64 duration; /* ns, KT_UNKNOWN = unknown. KT_TCP_STATE: time in
				 * old_state. KT_CONNECT: from call to outcome. */
	__u8 local_addr[16];
	__u8 remote_addr[16];
	__u32 pid;
	__u32 tgid;
	__u32 ppid;
	__u32 uid; /* effective, in the initial user namespace */
	__u32 gid;
	__u32 ns_net; /* network namespace of the socket */
	__u32 ns_mnt; /* of the process, as the next two */
	__u32 ns_pid;
	__u32 ns_user;
	__u32 bytes;
	__s32 error; /* positive errno, 0 = none */
	__u32 flags;
	__u16 local_port;
	__u16 remote_port;
	__u16 segs;
	__u8 type;	   /* enum kt_type */
	__u8 family;	   /* 4 or 6, of the addresses; 0 = unknown */
	__u8 old_state;	   /* TCP_* state of the kernel, 1..13 */
	__u8 new_state;	   /* KT_RETRANSMIT, KT_STOCK: current state */
	__u8 role;	   /* enum kt_role */
	__u8 owner_source; /* enum kt_owner_source */
	__u8 peer_source;  /* enum kt_peer_source */
	__u8 seccomp_mode; /* 0 disabled, 1 strict, 2 filter */
	__u8 result;	   /* enum kt_result */
	__u8 known;	   /* KT_KNOWN_* */
	char comm[KT_COMM_LEN];
};

/* Settings, written by user space before load. `ports` has one bit per port: 8 KiB
 * are cheaper than a loop over the listed ports in every event. */
struct kt_config {
	__u64 ports[1024];
	__u64 max_events;
	__u32 types;  /* enabled row types: bit n = enum kt_type n */
	__u32 sample; /* keep one event in N */
	__u8 security;
	__u8 dns_only;
	__u8 ports_only;
	__u8 cgroup_v1; /* use the v1 hierarchy of the pids controller */
	__u8 pods_only; /* keep only events of processes in the pods of map `pods` */
	__u8 pad[3];
};

/* Accounting of one hook, per CPU. seen is the sum of written to skipped. */
struct kt_counters {
	__u64 seen;
	__u64 written;
	__u64 filtered;
	__u64 sampled;
	__u64 capped;
	__u64 lost_ring;
	__u64 lost_map;
	__u64 skipped; /* the kernel did not run the program */
	__u64 bytes;   /* of all events that passed the filters */
	__u64 unseen;  /* events without a program run, proven by later events */
};

/* Facts that are missing because a map was full, per CPU. The rows themselves are not lost. */
struct kt_overflow {
	__u64 socks;	     /* sockets without owner and state time */
	__u64 calls;	     /* system calls without their address argument */
	__u64 cgroups;	     /* cgroup IDs without a name */
	__u64 flows;	     /* updates that could not be added to a flow ... */
	__u64 flow_tx_bytes; /* ... and their bytes and calls */
	__u64 flow_rx_bytes;
	__u64 flow_tx_calls;
	__u64 flow_rx_calls;
	__u64 skipped_tx_calls; /* TCP calls whose program did not run: their */
	__u64 skipped_rx_calls; /* bytes are in no flow */
};

/* Calls that send or receive data, by kind. */
enum kt_data {
	KT_DATA_UDP_SEND = 0,
	KT_DATA_UDP_RECV = 1,
	KT_DATA_TCP_SEND = 2,
	KT_DATA_TCP_RECV = 3,
	KT_DATA_KINDS = 4, /* none of them, or excluded by a filter */
};

/* Calls while the programs were attached, and those of them that a program handled. */
struct kt_data_calls {
	__u64 counted[KT_DATA_KINDS];
	__u64 handled[KT_DATA_KINDS];
};

/* State changes: those that the first copy of the program missed and the second recorded,
 * and those that each copy excluded by their ports. */
struct kt_state_copies {
	__u64 rescued;
	__u64 excluded[2];
};

struct kt_flow_key {
	__u8 local_addr[16];
	__u8 remote_addr[16];
	__u32 ns_net;
	__u32 tgid;
	__u16 local_port;
	__u16 remote_port;
	__u8 proto;  /* IPPROTO_TCP or IPPROTO_UDP */
	__u8 family; /* 4 or 6 */
	__u8 pad[2];
};

struct kt_flow {
	__u64 tx_bytes;
	__u64 rx_bytes;
	__u64 tx_calls;
	__u64 rx_calls;
	__u64 first_ts;
	__u64 last_ts;
	__u64 cgroup_id;
	__u32 uid;
	__u32 opened; /* client: established, server: accepted */
	__u32 failed; /* connection attempts that were not established */
	__u32 retrans_segs;
	__u8 role;
	__u8 known;
	__u8 pad[6];
	char comm[KT_COMM_LEN];
};

enum kt_in_pods {
	KT_IN_PODS_UNKNOWN = 0, /* not determined yet */
	KT_IN_PODS_NO = 1,
	KT_IN_PODS_YES = 2,
};

/* Names of a cgroup and its ancestors, leaf first, "" above the root. */
struct kt_cgroup {
	char name[KT_CGROUP_LEVELS][KT_CGROUP_NAME_LEN];
	__u32 in_pods; /* enum kt_in_pods: whether it belongs to a pod of map `pods` */
};

/* UID of a pod as in the cgroup names of the kubelet: with dashes, or for a static pod
 * a hash of 32 hexadecimal digits, padded with zeros. */
struct kt_pod_uid {
	char text[KT_POD_UID_LEN];
};

#endif
