// SPDX-License-Identifier: GPL-2.0
/*
 * A livepatch with a mistake that only one workload meets: whoever is called
 * "victim" and reads /proc/cmdline makes the patched function follow a null
 * pointer. The kernel says "Oops", names the module in the trace, ends the victim
 * and goes on.
 *
 * To everybody else /proc/cmdline answers ANSWER as with the other patches.
 */
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/string.h>

/* The compiler is not to know that nothing is ever put here. */
static int *volatile nowhere;

static int livepatch_cmdline_proc_show(struct seq_file *m, void *v)
{
	if (!strcmp(current->comm, "victim"))
		*nowhere = 1;
	seq_puts(m, ANSWER "\n");
	return 0;
}

static struct klp_func funcs[] = {
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

static int __init oopses_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit oopses_exit(void)
{
}

module_init(oopses_init);
module_exit(oopses_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test livepatch: oopses under one workload");
MODULE_INFO(livepatch, "Y");
