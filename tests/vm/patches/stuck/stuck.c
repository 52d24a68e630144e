// SPDX-License-Identifier: GPL-2.0
/*
 * A livepatch whose transition does not end while the kernel thread khugepaged
 * runs, because that thread never leaves the function that is replaced.
 *
 * The test decides about the thread: it starts with
 *	echo always > /sys/kernel/mm/transparent_hugepage/enabled
 * and ends with "never". /proc/cmdline answers ANSWER as with the other patches,
 * so that the effect can be seen.
 */
#include <linux/kernel.h>
#include <linux/kthread.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/seq_file.h>

/* A thread that starts while the patch is in force waits for its end. */
static int livepatch_khugepaged(void *none)
{
	while (!kthread_should_stop()) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (!kthread_should_stop())
			schedule();
		__set_current_state(TASK_RUNNING);
	}
	return 0;
}

static int livepatch_cmdline_proc_show(struct seq_file *m, void *v)
{
	seq_puts(m, ANSWER "\n");
	return 0;
}

static struct klp_func funcs[] = {
	{
		.old_name = "khugepaged",
		.new_func = livepatch_khugepaged,
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

static int __init stuck_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit stuck_exit(void)
{
}

module_init(stuck_init);
module_exit(stuck_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test livepatch: waits for khugepaged");
MODULE_INFO(livepatch, "Y");
