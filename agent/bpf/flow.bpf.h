/* SPDX-License-Identifier: GPL-2.0-only */
/* Counts and bytes of each flow: one tuple of one process. */
#ifndef KTRACE_FLOW_BPF_H
#define KTRACE_FLOW_BPF_H

KT_DEFINE_ZERO(kt_flow);

/* Returns the flow of this tuple and process, created if missing. Returns NULL if the map
 * is full; the caller then counts what it could not add. */
static __always_inline struct kt_flow *kt_flow_of(const struct kt_tuple *t, __u8 proto,
						  const struct kt_owner *owner, __u64 now)
{
	struct kt_flow_key key = {};
	struct kt_flow *flow;

	__builtin_memcpy(key.local_addr, t->local, 16);
	__builtin_memcpy(key.remote_addr, t->remote, 16);
	key.local_port = t->lport;
	key.remote_port = t->rport;
	key.ns_net = t->ns_net;
	key.tgid = owner->tgid;
	key.proto = proto;
	key.family = t->family;
	flow = bpf_map_lookup_elem(KT_MAP(flows), &key);
	if (flow) {
		flow->last_ts = now;
		return flow;
	}
	bpf_map_update_elem(KT_MAP(flows), &key, KT_ZERO(kt_flow), BPF_NOEXIST);
	flow = bpf_map_lookup_elem(KT_MAP(flows), &key);
	if (!flow) {
		struct kt_overflow *o = kt_overflow();

		if (o)
			kt_add(o->flows, 1);
		return NULL;
	}
	flow->first_ts = now;
	flow->last_ts = now;
	flow->known = owner->known;
	flow->uid = owner->uid;
	flow->cgroup_id = owner->cgroup_id;
	__builtin_memcpy(flow->comm, owner->comm, KT_COMM_LEN);
	return flow;
}

/* All flows of a socket have its role, because rows and flows are joined by role and the
 * process that connected is not always the one that sends. */
static __always_inline void kt_flow_role(struct kt_flow *flow, const struct kt_sock *s)
{
	if (s && s->role != KT_ROLE_UNKNOWN)
		flow->role = s->role;
}

/* `s` is the entry of the socket, NULL if it has none (UDP). */
static __always_inline void kt_flow_data(const struct kt_tuple *t, __u8 proto,
					 const struct kt_sock *s, const struct kt_owner *owner,
					 __u64 now, __u64 bytes, bool sent)
{
	struct kt_flow *flow = kt_flow_of(t, proto, owner, now);
	struct kt_overflow *o;

	if (flow)
		kt_flow_role(flow, s);
	if (flow && sent) {
		kt_add(flow->tx_bytes, bytes);
		kt_add(flow->tx_calls, 1);
	} else if (flow) {
		kt_add(flow->rx_bytes, bytes);
		kt_add(flow->rx_calls, 1);
	} else if ((o = kt_overflow()) && sent) {
		kt_add(o->flow_tx_bytes, bytes);
		kt_add(o->flow_tx_calls, 1);
	} else if (o) {
		kt_add(o->flow_rx_bytes, bytes);
		kt_add(o->flow_rx_calls, 1);
	}
}

#endif
