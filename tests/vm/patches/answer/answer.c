// SPDX-License-Identifier: GPL-2.0
/*
 * A livepatch whose effect anybody can see: /proc/cmdline answers ANSWER.
 *
 * It is built several times, with another ANSWER for each version. PADDING adds
 * that many bytes of read-only data, to make a module of a realistic size.
 */
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/seq_file.h>

#ifndef PADDING
#define PADDING 1
#endif

/* Neither zero, which would take no space in the file, nor ever dropped. */
static const char padding[PADDING] __used = { [0 ... PADDING - 1] = 'p' };

static int livepatch_cmdline_proc_show(struct seq_file *m, void *v)
{
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
	{ .funcs = funcs }, /* no name: the kernel itself */
	{ }
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objs,
	.replace = true,
};

static int __init answer_init(void)
{
	return klp_enable_patch(&patch);
}

/* A livepatch that has an exit function can be unloaded once it is disabled. */
static void __exit answer_exit(void)
{
}

module_init(answer_init);
module_exit(answer_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test livepatch: /proc/cmdline answers " ANSWER);
MODULE_INFO(livepatch, "Y");
