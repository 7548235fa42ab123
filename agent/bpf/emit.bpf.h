/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The path of every event: filters, accounting, record. Each event is counted as seen,
 * and once as filtered, sampled, capped, lost or written.
 */
#ifndef KTRACE_EMIT_BPF_H
#define KTRACE_EMIT_BPF_H

static __always_inline struct kt_counters *kt_hook(__u32 type)
{
	return bpf_map_lookup_elem(KT_MAP(counters), &type);
}

static __always_inline bool kt_wants(__u32 type)
{
	return kt_config.types & (1U << type);
}

static __always_inline bool kt_port_listed(__u16 port)
{
	return kt_config.ports[port >> 6] & (1ULL << (port & 63));
}

static __always_inline bool kt_ports_match(__u16 lport, __u16 rport)
{
	if (kt_config.dns_only && lport != 53 && rport != 53)
		return false;
	return !kt_config.ports_only || kt_port_listed(lport) || kt_port_listed(rport);
}

static __always_inline bool kt_port_match(const struct kt_tuple *t)
{
	return kt_ports_match(t->lport, t->rport);
}

/* Whether the port filters exclude a socket for its known ports. It is the first test of
 * each program: what a filter excludes must cost next to nothing. */
static __always_inline bool kt_excluded(bool typed, const struct sock *sk)
{
	__u16 lport;

	if (!kt_config.dns_only && !kt_config.ports_only)
		return false;
	lport = KT_READ(typed, sk, __sk_common.skc_num);
	if (!lport) /* released, or not chosen yet */
		lport = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	return !kt_ports_match(lport, bpf_ntohs(KT_READ(typed, sk, __sk_common.skc_dport)));
}

/* Counts an event that the filters exclude. */
static __always_inline void kt_filter(__u32 type)
{
	struct kt_counters *c = kt_wants(type) ? kt_hook(type) : NULL;

	if (!c)
		return;
	kt_add(c->seen, 1);
	kt_add(c->filtered, 1);
}

/* Whether this owner passes the pod filter. An unknown owner does not pass it. */
static __always_inline bool kt_wanted(const struct kt_owner *owner)
{
	return !kt_config.pods_only || owner->wanted;
}

/* Counts the event as seen. Returns the hook's counters if it passes the filters, else
 * NULL. */
static __always_inline struct kt_counters *kt_admit(__u32 type, const struct kt_tuple *t,
						    bool wanted, __u64 bytes)
{
	struct kt_counters *c = kt_hook(type);

	if (!c)
		return NULL;
	kt_add(c->seen, 1);
	if (!wanted || !kt_port_match(t)) {
		kt_add(c->filtered, 1);
		return NULL;
	}
	/* Never add a constant 0: clang makes it an atomic OR, which v5.10 does not have. */
	if (bytes)
		kt_add(c->bytes, bytes);
	return c;
}

/* Counts an event for which no program ran, as a later event proves. */
static __always_inline void kt_missed(__u32 type, const struct kt_tuple *t,
				      const struct kt_owner *owner)
{
	struct kt_counters *c;

	if (kt_wants(type) && kt_wanted(owner) && kt_port_match(t) && (c = kt_hook(type)))
		kt_add(c->unseen, 1);
}

/* Applies sampling and the event limit. Returns true if the event is kept. */
static __always_inline bool kt_keep(__u32 type, struct kt_counters *c)
{
	if (kt_config.sample > 1) {
		__u64 *tick = bpf_map_lookup_elem(KT_MAP(ticks), &type);

		if (tick && kt_fetch_add(*tick, 1) % kt_config.sample) {
			kt_add(c->sampled, 1);
			return false;
		}
	}
	if (kt_shared.kept >= kt_config.max_events ||
	    kt_fetch_add(kt_shared.kept, 1) >= kt_config.max_events) {
		kt_add(c->capped, 1);
		return false;
	}
	return true;
}

static __always_inline void kt_put_tuple(struct kt_event *e, const struct kt_tuple *t)
{
	__builtin_memcpy(e->local_addr, t->local, 16);
	__builtin_memcpy(e->remote_addr, t->remote, 16);
	e->local_port = t->lport;
	e->remote_port = t->rport;
	e->ns_net = t->ns_net;
	e->family = t->family;
	e->peer_source = t->peer_source;
}

static __always_inline void kt_put_owner(struct kt_event *e, const struct kt_owner *o)
{
	e->owner_source = o->source;
	e->known |= o->known;
	e->pid = o->pid;
	e->tgid = o->tgid;
	e->ppid = o->ppid;
	e->uid = o->uid;
	e->gid = o->gid;
	e->ns_mnt = o->ns_mnt;
	e->ns_pid = o->ns_pid;
	e->ns_user = o->ns_user;
	e->seccomp_mode = o->seccomp_mode;
	e->caps_eff = o->caps_eff;
	e->cgroup_id = o->cgroup_id;
	__builtin_memcpy(e->comm, o->comm, KT_COMM_LEN);
}

/* Returns a zeroed record with the common fields set, or counts the reason and returns
 * NULL. */
static __always_inline struct kt_event *kt_reserve(__u32 type, struct kt_counters *c,
						   const struct kt_tuple *t, __u64 ts)
{
	struct kt_event *e;

	if (!kt_keep(type, c))
		return NULL;
	e = bpf_ringbuf_reserve(KT_MAP(ring), sizeof(*e), 0);
	if (!e) {
		kt_add(kt_shared.kept, -1);
		kt_add(c->lost_ring, 1);
		return NULL;
	}
	__builtin_memset(e, 0, sizeof(*e));
	e->ts = ts;
	e->type = type;
	kt_put_tuple(e, t);
	return e;
}

/* User space polls the ring periodically (ring.c). A wakeup costs an inter-processor
 * interrupt, so it is sent only while more than a quarter of the ring is full. */
static __always_inline void kt_submit(struct kt_event *e, struct kt_counters *c)
{
	__u64 wake = bpf_ringbuf_query(KT_MAP(ring), BPF_RB_AVAIL_DATA) >
				     bpf_ringbuf_query(KT_MAP(ring), BPF_RB_RING_SIZE) / 4
			     ? BPF_RB_FORCE_WAKEUP
			     : BPF_RB_NO_WAKEUP;

	kt_add(c->written, 1);
	bpf_ringbuf_submit(e, wake);
}

#endif
