// SPDX-License-Identifier: GPL-2.0
/*
 * A livepatch that calls a function which no kernel has. The kernel refuses it
 * with ENOENT before any of its code runs.
 */
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/seq_file.h>

extern void livepatch_test_no_such_function(struct seq_file *m);

static int livepatch_cmdline_proc_show(struct seq_file *m, void *v)
{
	livepatch_test_no_such_function(m);
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

static int __init nosymbol_init(void)
{
	return klp_enable_patch(&patch);
}

static void __exit nosymbol_exit(void)
{
}

module_init(nosymbol_init);
module_exit(nosymbol_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test livepatch: needs a symbol that does not exist");
MODULE_INFO(livepatch, "Y");
