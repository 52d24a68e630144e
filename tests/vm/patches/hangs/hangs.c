// SPDX-License-Identifier: GPL-2.0
/*
 * A livepatch that hangs a system call under one workload, as the patch of
 * 2021-03-24 did with madvise(2): a task called "victim" that calls it sleeps for
 * ever and cannot be killed. Everybody else gets the kernel's own madvise.
 *
 * /proc/cmdline answers ANSWER as with the other patches.
 */
#include <linux/kernel.h>
#include <linux/kprobes.h>
#include <linux/livepatch.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/string.h>

/* The kernel's own, which is not exported; its address comes from a probe on it. */
static int (*own_madvise)(struct mm_struct *mm, unsigned long start, size_t len, int advice);

static long livepatch_sys_madvise(const struct pt_regs *regs)
{
	while (!strcmp(current->comm, "victim")) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		schedule();
	}
	return own_madvise(current->mm, regs->di, regs->si, regs->dx);
}

static int livepatch_cmdline_proc_show(struct seq_file *m, void *v)
{
	seq_puts(m, ANSWER "\n");
	return 0;
}

static struct klp_func funcs[] = {
	{
		.old_name = "__x64_sys_madvise",
		.new_func = livepatch_sys_madvise,
	},
	{
		.old_name = "cmdline_proc_show",
		.new_func = livepatch_cmdline_proc_show,
	},
	{ }
};

static struct klp_object objs[] = {
	{ .funcs = funcs },
	{ }
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objs,
	.replace = true,
};

static int __init hangs_init(void)
{
	struct kprobe probe = { .symbol_name = "do_madvise" };
	int err = register_kprobe(&probe);

	if (err)
		return err;
	own_madvise = (void *)probe.addr;
	unregister_kprobe(&probe);
	return klp_enable_patch(&patch);
}

static void __exit hangs_exit(void)
{
}

module_init(hangs_init);
module_exit(hangs_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test livepatch: hangs madvise under one workload");
MODULE_INFO(livepatch, "Y");
