/* SPDX-License-Identifier: GPL-2.0-only */
/* Facts about a task: identity, cgroup, and whether it belongs to a listed pod. */
#ifndef KTRACE_TASK_BPF_H
#define KTRACE_TASK_BPF_H

#define KT_POD 0x646f70	 /* "pod", little endian */
#define KT_POD_LEVELS 16 /* levels compared, from the cgroup of the process upwards */

KT_DEFINE_ZERO(kt_cgroup);

static __always_inline struct kernfs_node *kt_kernfs_parent(struct kernfs_node *kn)
{
#ifndef KT_BCC
	struct kernfs_node___rename *old = (void *)kn;

	if (bpf_core_field_exists(old->parent))
		return BPF_CORE_READ(old, parent);
#endif
	return BPF_CORE_READ(kn, __parent);
}

/* Stores the names of a cgroup at its first event: the process may be gone before user
 * space can read them. */
static __noinline void kt_cgroup_name(__u64 id, struct kernfs_node *kn)
{
	struct kt_cgroup *names = bpf_map_lookup_elem(KT_MAP(cgroups), &id);

	if (names)
		return;
	if (bpf_map_update_elem(KT_MAP(cgroups), &id, KT_ZERO(kt_cgroup), BPF_NOEXIST) == -E2BIG) {
		struct kt_overflow *o = kt_overflow();

		if (o)
			kt_add(o->cgroups, 1);
		return;
	}
	names = bpf_map_lookup_elem(KT_MAP(cgroups), &id);
	if (!names)
		return;
	for (int i = 0; i < KT_CGROUP_LEVELS; i++) {
		if (!kn)
			break;
		bpf_probe_read_kernel_str(names->name[i], KT_CGROUP_NAME_LEN,
					  BPF_CORE_READ(kn, name));
		kn = kt_kernfs_parent(kn);
	}
}

/* The task's node in the v1 hierarchy of the pids controller, or of the memory controller
 * if there is no other. The index of a controller depends on the kernel. */
static __always_inline struct kernfs_node *kt_v1_node(bool typed, struct task_struct *task)
{
	struct css_set *set = KT_READ(typed, task, cgroups);
	struct cgroup_subsys_state *css;
	__u64 index;

	if (bpf_core_enum_value_exists(enum cgroup_subsys_id, pids_cgrp_id))
		index = bpf_core_enum_value(enum cgroup_subsys_id, pids_cgrp_id);
	else
		index = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
	bpf_probe_read_kernel(&css, sizeof(css),
			      (void *)__builtin_preserve_access_index(&set->subsys) +
				      index * sizeof(css));
	return BPF_CORE_READ(css, cgroup, kn);
}

/* Returns the ID of the task's cgroup, 0 if it cannot be read, and sets its node. With a
 * pod filter the node is passed to global functions as a number. The verifier rejects a
 * pointer with a BTF type there, so the node is read with helpers. */
static __always_inline __u64 kt_cgroup_of(bool typed, struct task_struct *task,
					  struct kernfs_node **kn)
{
	if (typed && !kt_config.cgroup_v1 && !kt_config.pods_only) {
		*kn = task->cgroups->dfl_cgrp->kn;
		return (*kn)->id;
	}
	*kn = kt_config.cgroup_v1 ? kt_v1_node(typed, task)
				  : BPF_CORE_READ(task, cgroups, dfl_cgrp, kn);
	return BPF_CORE_READ(*kn, id);
}

static __always_inline bool kt_is_hex(__u8 c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

/*
 * The functions of the pod filter are global, so that the verifier checks each of them
 * once instead of at every call.
 *
 * Returns the address of the UID in `pod<UID>` or `...-pod<UID>.slice...`, 0 if there is
 * none.
 */
KT_GLOBAL __u64 kt_find_pod_uid(__u64 name)
{
	__u8 before = '-';

	for (int i = 0; i < KT_CGROUP_NAME_LEN; i++) {
		__u32 word = 0;

		if (bpf_probe_read_kernel(&word, sizeof(word), (void *)(name + i)) ||
		    !(word & 0xff))
			return 0;
		if (before == '-' && (word & 0xffffff) == KT_POD && kt_is_hex(word >> 24))
			return name + i + 3;
		before = word;
	}
	return 0;
}

/* Whether a name is that of the cgroup of a listed pod. systemd replaces `-` in the UID
 * by `_`. */
KT_GLOBAL int kt_names_pod(__u64 name)
{
	struct kt_pod_uid uid = {};
	__u64 begin = kt_find_pod_uid(name);

	if (!begin || bpf_probe_read_kernel(uid.text, KT_POD_UID_LEN, (void *)begin))
		return 0;
#pragma unroll
	for (int i = 8; i <= 23; i += 5)
		if (uid.text[i] == '_')
			uid.text[i] = '-';
	if (uid.text[8] != '-') /* a static pod: 32 digits */
		__builtin_memset(uid.text + 32, 0, KT_POD_UID_LEN - 32);
	return bpf_map_lookup_elem(KT_MAP(pods), &uid) != NULL;
}

/* Whether a cgroup belongs to a listed pod. Only its own name and those of its ancestors
 * decide, so a container that starts during the capture matches from its first event. */
KT_GLOBAL int kt_cgroup_wanted(__u64 id, __u64 node)
{
	struct kernfs_node *kn = (struct kernfs_node *)node;
	struct kt_cgroup *known;
	int found = 0;

	kt_cgroup_name(id, kn);
	known = bpf_map_lookup_elem(KT_MAP(cgroups), &id);
	if (known && known->in_pods)
		return known->in_pods == KT_IN_PODS_YES;
	for (int i = 0; i < KT_POD_LEVELS; i++) {
		if (!kn || found)
			break;
		found = kt_names_pod((__u64)BPF_CORE_READ(kn, name));
		kn = kt_kernfs_parent(kn);
	}
	if (known)
		known->in_pods = found ? KT_IN_PODS_YES : KT_IN_PODS_NO;
	return found;
}

/* Whether events of the current task pass the pod filter. */
static __always_inline bool kt_current_wanted(void)
{
	struct kernfs_node *kn;
	__u64 id;

	if (!kt_config.pods_only)
		return true;
	id = kt_cgroup_of(KT_MODERN, kt_current(), &kn);
	return id && kt_cgroup_wanted(id, (__u64)kn);
}

static __always_inline void kt_read_cgroup(bool typed, struct task_struct *task,
					   struct kt_owner *owner)
{
	struct kernfs_node *kn;
	__u64 id = kt_cgroup_of(typed, task, &kn);

	if (!id)
		return;
	owner->cgroup_id = id;
	owner->known |= KT_KNOWN_CGROUP;
	if (kt_config.pods_only)
		owner->wanted = kt_cgroup_wanted(id, (__u64)kn);
	else
		kt_cgroup_name(id, kn);
}

/* The PID namespace of the task itself. nsproxy holds that of its future children. */
static __always_inline __u32 kt_pid_ns(bool typed, struct task_struct *task)
{
	struct pid *pid = KT_READ(typed, task, thread_pid);
	unsigned int level = KT_READ(typed, pid, level);
	struct upid upid;

	if (typed && !level)
		return pid->numbers[0].ns->ns.inum;

	if (level > 32 ||
	    bpf_probe_read_kernel(&upid, sizeof(upid),
				  (void *)__builtin_preserve_access_index(&pid->numbers) +
					  level * sizeof(upid)))
		return 0;
	return BPF_CORE_READ(upid.ns, ns.inum);
}

static __always_inline void kt_read_task(bool typed, struct task_struct *task,
					 struct kt_owner *owner, __u8 source)
{
	struct task_struct *parent = KT_READ(typed, task, real_parent);
	const struct cred *cred = KT_READ(typed, task, cred);
	struct nsproxy *nsproxy = KT_READ(typed, task, nsproxy);
	struct mnt_namespace *mnt_ns = KT_READ(typed, nsproxy, mnt_ns);
	struct user_namespace *user_ns = KT_READ(typed, cred, user_ns);

	__builtin_memset(owner, 0, sizeof(*owner));
	owner->source = source;
	owner->known = KT_KNOWN_PROCESS;
	owner->pid = KT_READ(typed, task, pid);
	owner->tgid = KT_READ(typed, task, tgid);
	owner->ppid = KT_READ(typed, parent, tgid);
	owner->uid = KT_READ(typed, cred, euid.val);
	owner->gid = KT_READ(typed, cred, egid.val);
	owner->ns_mnt = KT_READ(typed, mnt_ns, ns.inum);
	owner->ns_user = KT_READ(typed, user_ns, ns.inum);
	owner->ns_pid = kt_pid_ns(typed, task);
	bpf_core_read_str(owner->comm, sizeof(owner->comm), &task->comm);
	if (kt_config.security) {
		owner->known |= KT_KNOWN_SECURITY;
		owner->seccomp_mode = KT_READ(typed, task, seccomp.mode);
		/* A u64 since v6.3, two u32 before (f122a08b197d). The bytes are the
		 * same on little endian. */
#ifndef KT_BASIC
		if (typed && bpf_core_field_exists(cred->cap_effective.val))
			owner->caps_eff = cred->cap_effective.val;
		else
#endif
			bpf_core_read(&owner->caps_eff, sizeof(owner->caps_eff),
				      &cred->cap_effective);
	}
	kt_read_cgroup(typed, task, owner);
}

static __always_inline void kt_read_current(struct kt_owner *owner, __u8 source)
{
	kt_read_task(KT_MODERN, kt_current(), owner, source);
}

static __always_inline bool kt_in_kthread(void)
{
	return KT_READ(KT_MODERN, kt_current(), flags) & PF_KTHREAD;
}

#endif
