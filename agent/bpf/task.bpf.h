/* SPDX-License-Identifier: GPL-2.0-only */
/* Who: the facts of a task, and the names of its cgroup while it lives. */
#ifndef KTRACE_TASK_BPF_H
#define KTRACE_TASK_BPF_H

#define PF_KTHREAD 0x00200000

static const struct kt_cgroup kt_zero_cgroup = {};

static __always_inline struct kernfs_node *kt_kernfs_parent(struct kernfs_node *kn)
{
	struct kernfs_node___rename *old = (void *)kn;

	if (bpf_core_field_exists(old->parent))
		return BPF_CORE_READ(old, parent);
	return BPF_CORE_READ(kn, __parent);
}

/* Keep the names of a cgroup at first sight: the process may be gone before
 * anyone in user space looks. */
static __noinline void kt_cgroup_name(__u64 id, struct kernfs_node *kn)
{
	struct kt_cgroup *names = bpf_map_lookup_elem(&cgroups, &id);

	if (names)
		return;
	if (bpf_map_update_elem(&cgroups, &id, &kt_zero_cgroup, BPF_NOEXIST) == -E2BIG) {
		struct kt_overflow *o = kt_overflow();

		if (o)
			kt_add(o->cgroups, 1);
		return;
	}
	names = bpf_map_lookup_elem(&cgroups, &id);
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

/* The v1 hierarchy of `pids`, or of `memory`; its index is this kernel's own. */
static __always_inline struct kernfs_node *kt_v1_node(struct task_struct *task)
{
	struct css_set *set = task->cgroups;
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

static __always_inline void kt_read_cgroup(struct task_struct *task, struct kt_owner *owner)
{
	struct kernfs_node *kn;
	__u64 id;

	if (kt_config.cgroup_v1) {
		kn = kt_v1_node(task);
		id = BPF_CORE_READ(kn, id);
	} else {
		kn = task->cgroups->dfl_cgrp->kn;
		id = kn->id;
	}
	if (!id)
		return;
	owner->cgroup_id = id;
	owner->known |= KT_KNOWN_CGROUP;
	kt_cgroup_name(id, kn);
}

/* The pid namespace that the task itself lives in; nsproxy has its children's. */
static __always_inline __u32 kt_pid_ns(struct task_struct *task)
{
	struct pid *pid = task->thread_pid;
	unsigned int level = pid->level;
	struct upid upid;

	if (!level)
		return pid->numbers[0].ns->ns.inum;

	if (level > 32 ||
	    bpf_probe_read_kernel(&upid, sizeof(upid),
				  (void *)__builtin_preserve_access_index(&pid->numbers) +
					  level * sizeof(upid)))
		return 0;
	return BPF_CORE_READ(upid.ns, ns.inum);
}

static __always_inline void kt_read_task(struct task_struct *task, struct kt_owner *owner,
					 __u8 source)
{
	const struct cred *cred = task->cred;

	__builtin_memset(owner, 0, sizeof(*owner));
	owner->source = source;
	owner->known = KT_KNOWN_PROCESS;
	owner->pid = task->pid;
	owner->tgid = task->tgid;
	owner->ppid = task->real_parent->tgid;
	owner->uid = cred->euid.val;
	owner->gid = cred->egid.val;
	owner->ns_mnt = task->nsproxy->mnt_ns->ns.inum;
	owner->ns_user = cred->user_ns->ns.inum;
	owner->ns_pid = kt_pid_ns(task);
	bpf_core_read_str(owner->comm, sizeof(owner->comm), &task->comm);
	if (kt_config.security) {
		owner->known |= KT_KNOWN_SECURITY;
		owner->seccomp_mode = task->seccomp.mode;
		/* A u64 since v6.3, two u32 before (f122a08b197d): the same bytes
		 * on little endian. */
		if (bpf_core_field_exists(cred->cap_effective.val))
			owner->caps_eff = cred->cap_effective.val;
		else
			bpf_core_read(&owner->caps_eff, sizeof(owner->caps_eff),
				      &cred->cap_effective);
	}
	kt_read_cgroup(task, owner);
}

static __always_inline void kt_read_current(struct kt_owner *owner, __u8 source)
{
	kt_read_task(bpf_get_current_task_btf(), owner, source);
}

static __always_inline bool kt_in_kthread(void)
{
	return bpf_get_current_task_btf()->flags & PF_KTHREAD;
}

#endif
